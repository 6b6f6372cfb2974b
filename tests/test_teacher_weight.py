"""What the actions of `TeacherWeight` do to a student's training, by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import variants, words
from families import INSTANCE, TEACHERS, after, params, same, shown
from kd_gym import ENV_IDS
from kd_gym.backend.encoder import encode
from kd_gym.backend.state import Context
from kd_gym.backend.store import TeacherStore
from kd_gym.backend.terms import Control
from kd_gym.experiments.setup import EnvSpec


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
            assert not any(part.requires_grad for one in seen for part in one[:2])
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
