"""Controllers that do not learn between episodes, by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kd_gym.agents.protocol import make_controller
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.store import TeacherStore
from kd_gym.envs.lab import Lab
from kd_gym.errors import KDGymError

TEACHERS, SAMPLES, KNOWLEDGE = (f"{name}-SST2-v0" for name in ("TeacherWeight", "SamplePriority", "KnowledgeSelect"))
INSTANCE = {"granularity": "instance"}


def observed(env, **parts):
    """An observation with these parts, and zeros elsewhere."""
    shape = env.observation_space.shape[:-1]
    columns = []
    for feature in env.episodes.features:
        value = np.asarray(parts.pop(feature.name, np.zeros((*shape, feature.size))), np.float32)
        columns.append(np.broadcast_to(value.reshape(*value.shape[: len(shape)], -1), (*shape, feature.size)))
    assert not parts
    return np.concatenate(columns, axis=-1)


def decided(env, controller, observation):
    """What the controller's action sets."""
    action, _ = controller.predict(observation)
    assert env.action_space.contains(action)
    return env.family.decide([action], env.episodes).control


# ---------------------------------------------------------------------- samples and teachers one by one


def test_ca_mkd_weighs_teachers_by_their_confidence_in_the_label(make_env):
    env = make_env(TEACHERS, **INSTANCE)
    env.reset(seed=0)
    loss = np.random.default_rng(0).uniform(0, 3, (8, 4))
    found = decided(env, make_controller("ca-mkd", env), observed(env, teacher_loss=loss / (1 + loss))).teachers[0]
    for row, weights in zip(loss, found.tolist(), strict=True):
        shares = np.exp(row) / np.exp(row).sum()
        assert weights == pytest.approx([(1 - share) / 3 for share in shares], abs=1e-5)


def test_govern_follows_the_majority_on_where_the_student_should_go(make_env):
    env = make_env(TEACHERS, action="multi", **INSTANCE)
    env.reset(seed=0)
    student = [0.5, 0.5, 0.9, 0.1, 0.5, 0.2, 0.5, 0.5]  # probabilities of the second class
    teachers = [
        [0.9, 0.8, 0.7, 0.4],  # three of four up
        [0.9, 0.9, 0.4, 0.4],  # two against two: all
        [0.95, 0.6, 0.6, 0.6],  # three of four down
        [0.9, 0.9, 0.9, 0.9],
        [0.1, 0.2, 0.6, 0.3],  # the first class: three of four up
        [0.1, 0.9, 0.8, 0.7],
        [0.1, 0.1, 0.1, 0.1],
        [0.6, 0.6, 0.6, 0.1],
    ]
    expected = [[1, 1, 1, 0], [1] * 4, [0, 1, 1, 1], [1] * 4, [1, 1, 0, 1], [0, 1, 1, 1], [1] * 4, [1, 1, 1, 0]]

    def both(p):
        return np.stack([1 - np.array(p), np.array(p)], -1)

    seen = observed(env, student=both(student), teachers=both(teachers))
    assert make_controller("govern", env).predict(seen)[0].tolist() == expected


def test_dynamic_kd_follows_the_students_uncertainty(make_env):
    p = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.5, 0.75])
    u = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    env = make_env(TEACHERS, **INSTANCE)
    env.reset(seed=0)
    found = decided(env, make_controller("dynamic-kd", env), observed(env, student=np.stack([p, 1 - p], -1)))
    expected = np.stack([1 - u, u, 0 * u, 0 * u], -1)  # the first teacher is the large one
    assert found.teachers[0].numpy() == pytest.approx(expected, abs=1e-6)

    env = make_env(SAMPLES, select="top", **INSTANCE)
    env.reset(seed=0)
    sure = np.random.default_rng(0).permutation(16) / 16
    scores = decided(env, make_controller("dynamic-kd", env), observed(env, student_entropy=sure)).selection.scores
    assert set(scores[0].argsort()[-8:].tolist()) == set(np.argsort(sure)[-8:])

    env = make_env(KNOWLEDGE)
    env.reset(seed=0)
    found = decided(env, make_controller("dynamic-kd", env), observed(env, entropy=0.3)).knowledge[0]
    assert found.tolist() == pytest.approx([1 / 2, 0.7 / 2, 0.3 / 2, 0], abs=1e-6)


# ---------------------------------------------------------------------- fixed choices of teachers


@pytest.fixture
def with_teachers(make_env, monkeypatch):
    """A TeacherWeight env whose teachers are right on these shares of rows."""

    def make(*shares, **options):
        env = make_env(TEACHERS, **options)
        labels, random = env.lab.data.split("reward").labels, torch.Generator().manual_seed(3)
        made = []
        for teacher, share in zip(env.lab.teachers(), shares, strict=True):
            wrong = torch.rand(len(labels), generator=random) >= share
            logits = 2.0 * torch.nn.functional.one_hot(torch.where(wrong, 1 - labels, labels), 2)
            logits += 0.3 * torch.randn(logits.shape, generator=random)
            store = TeacherStore(logits, teacher.store.cls, {})
            made.append(replace(teacher, over={"reward": store}.__getitem__))  # and of no other split
        monkeypatch.setattr(Lab, "teachers", lambda *_: tuple(made))
        return env

    return make


@pytest.mark.parametrize("options", [{}, INSTANCE])
def test_best_single_takes_the_teacher_that_is_most_often_right(with_teachers, options):
    env = with_teachers(0.7, 0.6, 0.95, 0.8, **options)
    found = decided(env, make_controller("best-single", env), env.observation_space.sample()).teachers
    assert (found == torch.eye(4)[2]).all()


@pytest.mark.parametrize("options", [{}, INSTANCE])
def test_weighted_ensemble_trusts_better_teachers_more(with_teachers, options):
    env = with_teachers(0.5, 0.9, 0.75, 0.1, **options)
    found = decided(env, make_controller("weighted-ensemble", env), env.observation_space.sample()).teachers
    chance, good, fair, bad = found.reshape(-1, 4)[0].tolist()
    assert good > fair > chance >= 0
    assert good > 2 * chance
    assert bad < 0.05


# ---------------------------------------------------------------------- bandits


def played(env, controller, best, decisions=300):
    """The arms that a bandit takes where one arm always gains and the others lose."""
    state, arms, gain = None, [], 0.0
    for step in range(decisions):
        seen = observed(env, progress=step / decisions, budget_left=1 - step / decisions, slope=-10 * gain)
        start = np.array([step == 0])
        arm, state = controller.predict(seen, state, start)
        arms.append(int(arm))
        gain = 0.05 if arm == best else -0.02
    return arms, state


@pytest.mark.parametrize("best", [1, 3])
@pytest.mark.parametrize(("name", "share"), [("exp3", 0.7), ("linucb", 0.9)])
def test_bandits_find_the_better_arm(make_env, name, share, best):
    env = make_env(KNOWLEDGE, action="choice")
    arms, _ = played(env, make_controller(name, env, seed=1), best)
    assert np.mean(np.array(arms[-100:]) == best) > share


@pytest.mark.parametrize("name", ["exp3", "linucb"])
def test_bandits_forget_at_the_start_of_an_episode(make_env, name):
    env = make_env(KNOWLEDGE, action="choice")
    controller = make_controller(name, env, seed=1)
    _, state = played(env, controller, 2, 50)
    seen = observed(env, progress=0.0, slope=-0.5)

    def memory(*given):
        return [part.tolist() for part in controller.predict(seen, *given)[1]]

    fresh, kept = memory(), memory(state, np.array([False]))
    assert fresh != kept
    assert memory(state, np.array([True])) == fresh
    assert memory(state) == kept  # nothing said of a start: the episode goes on
    both = controller.predict(
        np.stack([seen, seen]), tuple(np.concatenate([p, p]) for p in state), np.array([True, False])
    )
    for part, new, old in zip(both[1], fresh, kept, strict=True):
        assert [part[0].tolist()] == new
        assert [part[1].tolist()] == old


# ---------------------------------------------------------------------- courses and the oracle


def test_a_curriculum_moves_from_easy_to_hard(make_env):
    env = make_env(SAMPLES)
    env.reset(seed=0)

    def difficulty(name, progress):
        scores = decided(env, make_controller(name, env), observed(env, progress=progress)).selection.scores[0]
        assert torch.equal(scores[0], scores[1])
        assert torch.equal(scores[0], scores[2])
        return float((scores[0] * torch.arange(4)).sum() / scores[0].sum()), int(scores[0].argmax())

    course = [difficulty("curriculum", p) for p in np.linspace(0, 1, 9)]
    assert [mean for mean, _ in course] == sorted(mean for mean, _ in course)
    assert (course[0][1], course[-1][1]) == (0, 3)
    back = [difficulty("curriculum:back", p) for p in (0, 0.5, 1)]
    assert [peak for _, peak in back] == [0, 3, 0]


@pytest.mark.parametrize("env_id", [KNOWLEDGE, TEACHERS])
def test_greedy_takes_the_candidate_that_does_best_and_leaves_the_env_alone(make_env, env_id):
    env = make_env(env_id, context="noise-40")
    seen, _ = env.reset(seed=4)
    env.step(env.action_space.sample())
    greedy = make_controller("greedy", env)
    greedy.begin(env)
    before, cost = env.snapshot(), dict(env.cost)
    action, _ = greedy.predict(seen)
    (state, fields), (state_after, fields_after) = before[0], env.snapshot()[0]
    assert all(torch.equal(value, state_after.tensors[name]) for name, value in state.tensors.items())
    assert all(np.array_equal(value, fields_after[name]) for name, value in fields.items())

    losses, flops = [], 0
    for candidate in greedy.candidates:
        fork = env.fork()
        losses.append(fork.step(candidate)[4]["reward_split"]["cross_entropy"])
        flops += sum(fork.cost[part] - cost[part] for part in ("student_flops", "evaluation_flops"))
    tried = next(i for i, candidate in enumerate(greedy.candidates) if np.array_equal(candidate, action))
    assert losses[tried] == pytest.approx(min(losses), abs=1e-5)
    assert max(losses) > min(losses) + 1e-4
    assert greedy.cost(1) == flops > 0
    greedy.begin(env)
    assert greedy.cost(1) == 0


def test_greedy_takes_no_candidate_under_which_the_student_fails(make_env, monkeypatch):
    env = make_env(KNOWLEDGE)
    env.reset(seed=0)
    controller = make_controller("greedy", env)
    controller.begin(env)
    best = int(np.flatnonzero((controller.candidates == controller.predict(env.episodes.observe()[0])[0]).all(1))[0])
    advance = DistillationProcess.advance

    def failing(self, control, updates):
        trace = advance(self, control, updates)
        self.failed[best] = True
        return trace

    monkeypatch.setattr(DistillationProcess, "advance", failing)
    assert not np.array_equal(controller.predict(env.episodes.observe()[0])[0], controller.candidates[best])


# ---------------------------------------------------------------------- who serves whom


@pytest.mark.parametrize(
    ("name", "env_id", "options", "said"),
    [
        ("aks", KNOWLEDGE, {}, "AKS needs observation='cls', not 'vector'"),
        ("aks", TEACHERS, {}, "AKS does not serve TeacherWeight; it fits KnowledgeSelect-*"),
        ("rlkd", TEACHERS, {"action": "multi"}, "RLKD needs granularity='instance', not 'batch'"),
        ("dqn", KNOWLEDGE, {}, "DQNAgent takes no 'weights' actions; it takes choice"),
        ("greedy", TEACHERS, INSTANCE, "Greedy needs granularity='batch', not 'instance'"),
        ("curriculum", KNOWLEDGE, {}, "Curriculum does not serve KnowledgeSelect; it fits SamplePriority-*"),
        ("best-single", KNOWLEDGE, {}, "BestSingle does not serve KnowledgeSelect; it fits TeacherWeight-*"),
        ("dynamic-kd", "JointControl-SST2-v0", {}, "DynamicKD does not serve JointControl"),
        ("exp3", KNOWLEDGE, {"action": "choice", "reward_every": 3}, "Exp3 needs reward_every=1, not 3"),
    ],
)
def test_a_controller_made_for_an_env_that_it_does_not_serve_says_so(make_env, name, env_id, options, said):
    with pytest.raises(KDGymError) as caught:
        make_controller(name, make_env(env_id, **options))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["ca-mkd", "dynamic-kd"])
def test_choosing_between_teachers_takes_two(make_env, tmp_path, name):
    file = tmp_path / "teachers.json"
    file.write_text('[{"name": "mine"}]')
    env = make_env(TEACHERS, teachers=str(file), **INSTANCE)
    seen, _ = env.reset(seed=0)
    with pytest.raises(KDGymError, match="this env has one"):
        make_controller(name, env).predict(seen)
