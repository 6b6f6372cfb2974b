"""What the actions of the env families do to a student's training, by hand."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import variants, words

from kd_gym import ENV_IDS, KDGymError
from kd_gym.backend.encoder import encode
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.sampling import Selection, choose, difficulties, quantile_scores
from kd_gym.backend.state import Context
from kd_gym.backend.store import TeacherStore
from kd_gym.backend.terms import Control
from kd_gym.experiments.setup import EnvSpec

TEACHERS, SAMPLES, JOINT = (f"{family}-SST2-v0" for family in ("TeacherWeight", "SamplePriority", "JointControl"))
INSTANCE = {"granularity": "instance"}


def params(env):
    return {name: value.detach().clone() for name, value in env.episodes.process.params.items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def after(env, actions, seed=1):
    """The student's parameters after these actions."""
    env.reset(seed=seed)
    for action in actions:
        env.step(action)
    return params(env)


def shown(env, observation):
    """The parts of an observation by name."""
    ends = np.cumsum([feature.size for feature in env.episodes.features])[:-1]
    names = [feature.name for feature in env.episodes.features]
    return dict(zip(names, np.split(observation, ends, axis=-1), strict=True))


@pytest.fixture
def trained_on(monkeypatch):
    """What every update of a process trained on: the forward passes that gradients are taken of, with their rows."""
    passes, seen = [], []
    forward, gradients = DistillationProcess._forward, DistillationProcess._back

    def noted(self, given, slots, offset=0, drawn=None):
        rows = (drawn or self._rows(slots, offset))[0]
        passes.append((rows, forward(self, given, slots, offset, drawn)))
        return passes[-1][1]

    def trained(self, total, batch, part):
        seen.append(next(one for one in passes if one[1] is batch))
        return gradients(self, total, batch, part)

    monkeypatch.setattr(DistillationProcess, "_forward", noted)
    monkeypatch.setattr(DistillationProcess, "_back", trained)
    return seen


# ---------------------------------------------------------------------- TeacherWeight


@pytest.mark.parametrize("options", variants(TEACHERS), ids=words)
def test_teacher_weights_sum_to_one_over_teachers(make_env, options):
    env = make_env(TEACHERS, **options)
    env.reset(seed=0)
    env.action_space.seed(0)
    batch = env.family.recipe.process.batch
    for _ in range(10):
        control = env.family.decide([env.action_space.sample()], env.episodes).control
        assert control.teachers.shape == ((1, batch, 4) if options["granularity"] == "instance" else (1, 4))
        assert (control.teachers >= 0).all()
        assert torch.allclose(control.teachers.sum(-1), torch.ones((), dtype=torch.double))
        assert control.knowledge.tolist() == [[0.5, 0.5]]


def garbage(store):
    random = torch.Generator().manual_seed(7)
    logits, cls = (torch.randn(part.shape, generator=random) for part in (store.logits, store.cls))
    return TeacherStore(9 * logits, cls.half(), store.key)


@pytest.mark.parametrize("chosen", [0, 2])
@pytest.mark.parametrize("options", [{}, {"action": "choice"}, {**INSTANCE, "action": "multi"}], ids=words)
def test_teachers_that_are_not_picked_play_no_part(make_env, options, chosen):
    pick = {"weights": 2 * np.eye(4)[chosen] - 1, "multi": np.eye(4, dtype=np.int8)[[chosen] * 8], "choice": chosen}
    actions = [pick[options.get("action", "weights")]] * 2
    env, other = make_env(TEACHERS, **options), make_env(TEACHERS, **options)
    process = other.episodes.process
    process.lessons.teachers = {
        name: tuple(store if m == chosen else garbage(store) for m, store in enumerate(group))
        for name, group in process.lessons.teachers.items()
    }
    assert same(after(env, actions), after(other, actions))
    process.lessons.teachers = {name: tuple(map(garbage, group)) for name, group in process.lessons.teachers.items()}
    assert not same(after(env, actions), after(other, actions))


def test_one_teacher_for_every_sample_is_that_teacher_for_the_decision(make_env):
    batch, each = make_env(TEACHERS, action="choice"), make_env(TEACHERS, action="multi", **INSTANCE)
    bits = np.eye(4, dtype=np.int8)[[1] * 8]
    assert same(after(batch, [1]), after(each, [bits] * batch.family.updates))


def test_an_empty_selection_of_a_decision_keeps_the_control(make_env):
    env = make_env(TEACHERS, action="multi")
    env.reset(seed=0)
    assert list(env.step(np.zeros(4, np.int8))[4]["control"].values()) == [0.25] * 4
    env.step(np.array([0, 1, 1, 0], np.int8))
    info = env.step(np.zeros(4, np.int8))[4]
    assert list(info["control"].values()) == [0, 0.5, 0.5, 0]
    assert info["empty_selections"] == 2


def test_an_empty_selection_of_a_sample_takes_the_most_confident_teacher(make_env):
    env = make_env(TEACHERS, action="multi", **INSTANCE)
    env.reset(seed=0)
    process = env.episodes.process
    for _ in range(3):
        rows = process.lessons.streams[0].rows(int(process.update))[0]
        said = torch.stack(
            [store.logits[rows].softmax(-1).max(-1).values for store in process.lessons.teachers["full"]], -1
        )
        bits = np.zeros((8, 4), np.int8)
        bits[0, 1:3] = bits[5, 3] = 1
        expected = np.eye(4)[said.argmax(-1)]
        expected[0], expected[5] = [0, 0.5, 0.5, 0], [0, 0, 0, 1]
        before = env.episodes.info(0)["empty_selections"]
        assert np.array_equal(env.family.decide([bits], env.episodes).control.teachers[0], expected)
        assert env.step(bits)[4]["empty_selections"] == before + 6


def test_rows_shown_describe_the_batch_trained_on_next(make_env, trained_on):
    env = make_env(TEACHERS, context="noise-40", **INSTANCE)
    seen, _ = env.reset(seed=3)
    process, wrong = env.episodes.process, 0
    for update in range(5):
        row, before = shown(env, seen), params(env)
        seen, *_ = env.step(env.action_space.sample())
        rows, batch = trained_on[-1]
        labels = process.lessons.labels[0][rows[0]]
        wrong += int((labels != process.train.labels[rows[0]]).sum())
        stores = process.lessons.teachers["full"]
        log_p = torch.stack([store.logits[rows[0]].log_softmax(-1) for store in stores], 1)
        ce = -log_p.gather(-1, labels[:, None, None].expand(-1, 4, 1)).squeeze(-1)
        said = encode(before, process.init.arch, process.train.batch(rows)).logits[0].softmax(-1)
        own = F.nll_loss(said.log(), labels, reduction="none")
        assert torch.equal(batch.labels[0], labels)
        assert row["progress"] == pytest.approx(update / 20)
        assert row["cls"] == pytest.approx(stores[0].cls[rows[0], -1].float().clamp(-10, 10).numpy())
        assert row["teachers"].reshape(8, 4, 2) == pytest.approx(log_p.exp().numpy(), abs=1e-6)
        assert row["teacher_loss"] == pytest.approx((ce / (1 + ce)).numpy(), abs=1e-6)
        assert row["student"] == pytest.approx(said.numpy(), abs=1e-5)
        assert row["student_loss"][:, 0] == pytest.approx((own / (1 + own)).numpy(), abs=1e-5)
    assert wrong > 5


@pytest.mark.parametrize("reward", ["batch_ce", "batch_ce_kd", "batch_mixed"])
@pytest.mark.parametrize("options", [{}, INSTANCE], ids=words)
def test_batch_rewards_are_measured_on_the_batch_after_its_update(make_env, reward, options):
    env = make_env(TEACHERS, reward=reward, context="noise-40", **options)
    env.reset(seed=2)
    process = env.episodes.process
    for _ in range(2):
        _, found, _, _, info = env.step(env.action_space.sample())
        rows = torch.from_numpy(process.lessons.streams[0].rows(int(process.update) - 1)[0])
        tau = process.recipe.tau
        with torch.no_grad():
            z = encode(process.params, process.init.arch, process.train.batch(rows[None])).logits[0]
        ce = F.cross_entropy(z, process.lessons.labels[0][rows])
        said = torch.stack([(s.logits[rows] / tau).softmax(-1) for s in process.lessons.teachers["full"]]).mean(0)
        kd = tau**2 * (said * (said.log() - (z / tau).log_softmax(-1))).sum(-1).mean()
        accuracy = info["reward_split"]["accuracy"]
        expected = {"batch_ce": -ce, "batch_ce_kd": -ce - kd, "batch_mixed": (accuracy - ce - kd) / 2}[reward]
        assert found == pytest.approx(float(expected), abs=1e-5)
        assert info["reward_terms"]["batch"] == found


def test_the_distillation_term_of_batch_rewards_does_not_reward_the_choice_of_teachers(make_process):
    found = []
    for m in range(3):
        process = make_process(teachers={"full": ("full", "tenth", "early")}, knowledge=("hard", "response"))
        process.reset([1], [Context("still", rate=0.0)])  # the student stays as it is
        process.advance(Control(torch.full((1, 2), 0.5), torch.eye(3)[[m]]), 1)
        found.append(process.review())
    assert len({float(soft) for _, soft in found}) == 1
    assert float(found[0][1]) > 0


def test_looking_at_the_coming_batch_costs_nothing_and_changes_nothing(make_process):
    half, found = Control(torch.full((2, 4), 0.25)), []
    for looks in (0, 2):
        process = make_process(2)
        process.reset([1, 2], [Context()] * 2)
        for _ in range(3):
            seen = [process.peek() for _ in range(looks)]
            assert not any(part.requires_grad for one in seen for part in (one.losses, *one.encoded[:3]))
            process.advance(half, 2)
        found.append((process.params, process.cost.flops))
    assert all(torch.equal(value, found[1][0][name]) for name, value in found[0][0].items())
    assert np.array_equal(found[0][1], found[1][1])


def test_a_student_that_starts_anew_does_not_train_on_what_was_seen_before(make_process):
    half, found = Control(torch.full((2, 4), 0.25)), []
    for looks in (False, True):
        process = make_process(2)
        process.reset([1, 2], [Context()] * 2)
        if looks:
            process.peek()
        process.reset([7], [Context("noise", label_noise=0.4)], [1])
        process.advance(half, 1)
        found.append(process.params)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


# ---------------------------------------------------------------------- SamplePriority


def test_quantile_scores_are_products_of_the_weights_of_a_candidates_quantiles():
    measures = torch.tensor([[[0.1, 0.4, 0.2, 0.3], [5.0, 5.0, 1.0, 7.0]]])
    weights = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])
    # halves of the first measure: 0 and 2 are low; of the second: 2 and, first among equals, 0
    assert quantile_scores(measures, weights).tolist() == [[1 * 3, 2 * 5, 1 * 3, 2 * 5]]
    odd = quantile_scores(torch.arange(6.0)[None, None], torch.tensor([[[1.0, 2, 3, 4]]]))
    assert odd.tolist() == [[1, 1, 2, 3, 3, 4]]


def test_difficulties_are_those_of_their_definitions(make_process):
    process = make_process(2)
    process.reset([1, 2], [Context("noise", label_noise=0.4)] * 2)
    seen = process.peek(12)
    found = difficulties(seen.encoded.logits, seen.teachers[0], seen.labels)
    assert found.shape == (2, 3, 12)
    for n in range(2):
        for i in range(12):
            p, q = seen.teachers[0].logits[n, i].softmax(-1), seen.encoded.logits[n, i].softmax(-1)
            expected = [-(p * p.log()).sum(), -q[seen.labels[n, i]].log(), 0.5 * (p - q).abs().sum()]
            assert found[n, :, i].tolist() == pytest.approx([float(x) for x in expected], abs=1e-5)


SCORES = torch.tensor([[0.5, 0.0, 1.0, 0.25, 1.0, 0.25, 0.5, 0.1]])


def drawn(how, scores=SCORES, batch=3, keys=((1, 2),), **options):
    return choose(Selection(scores, scores.shape[1], how, **options), scores, batch, keys)


def test_top_takes_the_highest_and_weight_takes_all():
    places, weights = drawn("top")
    assert set(places[0, :2].tolist()) == {2, 4}
    assert places[0, 2] in (0, 6)
    assert weights.tolist() == [[1, 1, 1]]
    assert {int(drawn("top", keys=[(1, u)])[0][0, 2]) for u in range(20)} == {0, 6}  # equals take turns
    places, weights = drawn("weight", batch=8)
    assert places.tolist() == [list(range(8))]
    assert torch.allclose(weights, SCORES.double() / SCORES.double().mean())
    assert drawn("weight", 0 * SCORES, batch=8)[1].tolist() == [[1.0] * 8]


def test_draws_are_in_proportion_to_the_scores_and_without_replacement():
    count = 4000
    places, weights = drawn("sample", SCORES.expand(count, -1), keys=[(5, u) for u in range(count)])
    assert (weights == 1).all()
    assert all(len(set(row)) == 3 for row in places.tolist())
    p = (SCORES / SCORES.sum())[0].numpy()
    found = np.bincount(places[:, 0], minlength=8)  # the first of each draw
    assert found[1] == 0
    alive = p > 0
    assert ((found - count * p)[alive] ** 2 / (count * p)[alive]).sum() < 35  # chi-square of 6 degrees: p < 1e-5
    # the second one, given the first: those that are left, in proportion
    second = np.bincount(places[places[:, 0] == 2][:, 1], minlength=8)
    q = np.where(np.arange(8) == 2, 0, p) / (1 - p[2])
    assert second / second.sum() == pytest.approx(q, abs=0.05)
    assert set(drawn("sample", batch=8)[0][0, 7:].tolist()) == {1}  # what has no score comes last


def test_corrected_draws_weigh_the_inverse_of_their_probability():
    for u in range(20):
        places, weights = drawn("sample", keys=[(3, u)], correct=True)
        raw = 1 / (8 * (SCORES / SCORES.sum()).double().gather(1, places))
        assert torch.allclose(weights, raw / raw.mean())
        assert weights.mean() == pytest.approx(1)


def test_scores_that_are_all_nothing_count_as_equal(make_env):
    for how in ("top", "sample", "weight"):
        one, other = (drawn(how, torch.full((1, 8), value), correct=True) for value in (0.0, 1.0))
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    for options in variants(SAMPLES):
        env = make_env(SAMPLES, **options)
        nothing, everything = (np.full(env.action_space.shape, v, np.float32) for v in (-1, 1))
        assert same(after(env, [nothing] * 2), after(env, [everything] * 2))


@pytest.mark.parametrize("options", variants(SAMPLES), ids=words)
def test_rows_drawn_are_functions_of_the_student_and_its_update_whatever_its_neighbours(make_env, trained_on, options):
    vector = gym.make_vec(SAMPLES, num_envs=3, backend="tiny", **options)
    vector.reset(seed=[4, 5, 6])
    env = make_env(SAMPLES, **options)
    env.reset(seed=5)
    for _ in range(3):
        actions = vector.action_space.sample()
        trained_on.clear()
        vector.step(actions)
        together = [rows[1].tolist() for rows, _ in trained_on]
        trained_on.clear()
        env.step(actions[1])
        assert [rows[0].tolist() for rows, _ in trained_on] == together


@pytest.mark.parametrize("options", variants(SAMPLES), ids=words)
def test_rows_trained_on_come_from_the_pool(make_env, trained_on, options):
    env = make_env(SAMPLES, **options)
    env.reset(seed=1)
    process, family = env.episodes.process, env.family
    for _ in range(3):
        pools = [
            process.lessons.streams[0].rows(int(process.update) + i, family.pool)[0] for i in range(family.updates)
        ]
        trained_on.clear()
        action = env.action_space.sample()
        env.step(action)
        assert len(trained_on) == len(pools)
        for (rows, _), pool in zip(trained_on, pools, strict=True):
            places = [pool.tolist().index(row) for row in rows[0].tolist()]
            assert len(set(places)) == 8
            if family.select == "top":
                assert set(places) == set(np.argsort(action)[-8:])
            if family.select == "weight":
                assert places == list(range(8))


def test_candidates_shown_are_those_chosen_among(make_env):
    env = make_env(SAMPLES, context="noise-40", **INSTANCE)
    seen, _ = env.reset(seed=2)
    process = env.episodes.process
    for update in range(3):
        rows = torch.from_numpy(process.lessons.streams[0].rows(update, 16)[0])
        labels = process.lessons.labels[0][rows]
        with torch.no_grad():
            student = encode(process.params, process.init.arch, process.train.batch(rows[None])).logits[0].softmax(-1)
        teacher = process.lessons.teachers["full"][0].logits[rows].softmax(-1)
        at = torch.arange(16)
        ce, their_ce = -student[at, labels].log(), -teacher[at, labels].log()
        expected = {
            "progress": torch.full((16,), update / 20),
            "teacher_entropy": -(teacher * teacher.log2()).sum(-1),
            "student_loss": ce / (1 + ce),
            "disagreement": (teacher - student).abs().sum(-1) / 2,
            "teacher_loss": their_ce / (1 + their_ce),
            "student_entropy": -(student * student.log2()).sum(-1),
            "student_margin": (student[:, 0] - student[:, 1]).abs(),
            "agreement": (teacher.argmax(-1) == labels).float(),
        }
        assert [feature.name for feature in env.episodes.features] == list(expected)
        assert seen == pytest.approx(torch.stack(list(expected.values()), 1).numpy(), abs=1e-5)
        seen, *_ = env.step(env.action_space.sample())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool": 4}, "a pool of 4 candidates is smaller than the batch of 8; take at least 8"),
        ({"pool": 0}, "a pool of 0 candidates"),
        ({"pool": 16, "select": "weight", **INSTANCE}, "its pool is the batch of 8"),
        ({"select": "top"}, "it needs granularity='instance'"),
        ({"select": "tops", **INSTANCE}, "did you mean 'top'"),
        ({"reward": "batch_ce"}, "reward 'batch_ce' has no meaning where rows are selected; take cross_entropy"),
    ],
)
def test_options_that_do_not_go_together_are_one_clear_line(make_env, options, said):
    with pytest.raises(KDGymError) as caught:
        make_env(SAMPLES, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("quantile", [0, 3])
def test_a_quantile_that_alone_has_weight_is_the_batch(make_env, trained_on, quantile):
    env = make_env(SAMPLES, context="noise-40", pool=32)
    env.reset(seed=0)
    process, weights = env.episodes.process, np.ones((3, 4), np.float32)
    weights[1] = -1
    weights[1, quantile] = 1  # a quarter of 32 by the student's loss
    pool, seen = process.lessons.streams[0].rows(0, 32)[0], process.peek(32)
    loss = F.cross_entropy(seen.encoded.logits[0], seen.labels[0], reduction="none")
    env.step(weights.ravel())
    quarter = loss.argsort()[8 * quantile : 8 * quantile + 8]
    assert set(pool[quarter].tolist()) == set(trained_on[0][0][0].tolist())


def test_rows_that_only_fill_a_corrected_batch_weigh_nothing():
    scores = torch.tensor([[0.0, 1.0, 0.0, 0.5, 0.0, 0.0]])
    places, weights = choose(Selection(scores, 6, correct=True), scores, 4, [(0, 0)])
    expected = {1: 4 / 3, 3: 8 / 3}
    for place, weight in zip(places[0].tolist(), weights[0].tolist(), strict=True):
        assert weight == pytest.approx(expected.get(place, 0.0))


def test_a_measure_without_weights_leaves_the_choice_to_the_others(make_env):
    env = make_env(SAMPLES)
    weights = np.full((3, 4), -1, np.float32)
    weights[1] = [-1, -1, -1, 1]
    scores = env.family.decide([weights.ravel()], env.episodes).control.selection.scores[0]
    assert scores.tolist() == [[1] * 4, [0, 0, 0, 1], [1] * 4]


def test_a_neighbour_that_fails_or_starts_anew_costs_the_others_nothing():
    def play(broken):
        env = gym.make_vec(SAMPLES, num_envs=2, backend="tiny", granularity="instance", reward_every=2)
        env.reset(seed=[1, 2])
        seen = []
        for step in range(4):
            if broken and step == 1:
                with torch.no_grad():
                    env.episodes.process.params["classifier.weight"][1] = torch.nan
            info = env.step(np.zeros(env.action_space.shape, np.float32))[-1]
            seen.append((int(info["flops"][0]), float(info["reward_terms"]["accuracy_gain"][0])))
        return seen

    assert play(False) == play(True)


# ---------------------------------------------------------------------- JointControl


def test_dict_and_flat_form_of_an_action_are_the_same(make_env):
    flat, parts = make_env(JOINT), make_env(JOINT, action="dict")
    flat.action_space.seed(0)
    actions = [flat.action_space.sample() for _ in range(3)]
    ends = np.cumsum([len(part) for part in flat.family.parts.values()])[:-1]
    named = [dict(zip(flat.family.parts, np.split(action, ends), strict=True)) for action in actions]
    assert set(named[0]) == set(parts.action_space)
    assert same(after(flat, actions), after(parts, named))


@pytest.mark.parametrize("part", ["knowledge", "teachers", "samples"])
def test_a_joint_action_is_the_designs_formula_also_with_two_parts_uniform(make_env, trained_on, part):
    env = make_env(JOINT, action="dict")
    env.reset(seed=1)
    process = env.episodes.process
    random = np.random.default_rng(0)
    action = {name: np.full(len(labels), -1, np.float32) for name, labels in env.family.parts.items()}
    action[part] = random.uniform(-1, 1, len(env.family.parts[part])).astype(np.float32)
    trained_on.clear()
    control = env.family.decide([action], env.episodes).control
    trace = process.advance(control, 1)
    (rows, batch), raw = trained_on[-1], (action[part] + 1) / 2
    w, t = torch.full((4,), 1 / 4), torch.full((4,), 1 / 4)
    if part == "knowledge":
        w = torch.from_numpy(raw / raw.sum())
    elif part == "teachers":
        t = torch.from_numpy(raw / raw.sum())
    assert control.selection.scores.shape == (1, 3, 4)
    if part != "samples":
        assert (control.selection.scores == 1).all()  # all rows alike
    fresh = make_env(JOINT, action="dict")
    fresh.reset(seed=1)  # the student of before the update
    again = fresh.episodes.process
    slow = again._forward(again.params, [0], drawn=(rows, [process.lessons.streams[0].rows(0)[1]]))
    assert torch.allclose(slow.losses, batch.losses)
    loss = sum(
        w[k] * t[m] / again.scale[0, k, m] * slow.losses[0, k, m, i] / 8
        for k in range(4)
        for m in range(4)
        for i in range(8)
    )
    norm = again._back(loss, slow, *again._parts(1))
    assert float(trace.gradient_norm) == pytest.approx(float(norm), rel=1e-4)


# ---------------------------------------------------------------------- contexts


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("backend", ["full", "tiny"])
def test_a_contexts_teachers_differ_in_the_first_one_alone(env_id, backend):
    recipe = EnvSpec(env_id, backend=backend).family.recipe
    default = recipe.teacher_set()
    assert len({spec.name for spec in default}) == len(default) == (4 if env_id.startswith(("Teacher", "Joint")) else 1)
    for name in ("early", "flipped"):
        first, *others = recipe.teacher_set(name)
        assert first.name == name
        assert first.checkpoint == default[0].checkpoint
        assert tuple(others) == default[1:]
    assert recipe.teacher_set("early")[0].stage == "early"
    assert recipe.teacher_set("flipped")[0].label_noise > 0.5


def test_the_wrong_teacher_stands_in_the_first_ones_place(make_env):
    env, wrong = (make_env(TEACHERS, context=name, **INSTANCE) for name in ("default", "wrong-teacher"))
    seen, info = env.reset(seed=1)
    theirs, other = wrong.reset(seed=1)
    assert [t["name"] for t in info["teachers"]] == ["full", "shallow", "tenth", "imdb"]
    assert [t["name"] for t in other["teachers"]] == ["flipped", "shallow", "tenth", "imdb"]
    one, two = (shown(env, rows)["teachers"].reshape(8, 4, 2) for rows in (seen, theirs))
    assert np.array_equal(one[:, 1:], two[:, 1:])
    assert not np.array_equal(one[:, 0], two[:, 0])
    assert list(other["control"]) == list(env.family.labels)  # the controller is not told
