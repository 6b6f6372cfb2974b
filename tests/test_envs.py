"""Every id, through the registry: a new env, task or option of a family is covered without a change here."""

import json
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector.utils import iterate
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from conftest import variants, words
from kd_gym import ENV_IDS, KDGymError
from kd_gym.envs import observation
from kd_gym.envs.contexts import HELD_OUT, SETS, TRAIN, draw_context
from kd_gym.envs.episodes import FAILURE_REWARD
from kd_gym.envs.faces import TRAIN_SEEDS
from kd_gym.envs.flat import FlatEnv
from kd_gym.envs.registration import FAMILIES
from kd_gym.experiments.setup import EnvSpec, env_arguments
from kd_gym.tasks.data import TaskData

ONE = "KnowledgeSelect-SST2-v0"
DEFAULTS = [f"{family}-SST2-v0" for family in FAMILIES]


def cases(ids, *marks):
    """All variants of these ids."""
    return [pytest.param(i, v, id=f"{i}-{words(v)}", marks=marks) for i in ids for v in variants(i)]


VARIANTS = cases(DEFAULTS)
OTHERS = [f"{family}{rest}-v0" for family in FAMILIES for rest in ("", "-RTE-Base", "-MNLI")]
QUICK = [f"{family}{rest}-v0" for family in FAMILIES for rest in ("", "-MNLI")]
REST = [pytest.param(i, {}, id=i, marks=[pytest.mark.slow] * (i not in QUICK)) for i in ENV_IDS if i not in DEFAULTS]


def rollout(env, seed, actions=None):
    """All observations, rewards and infos of an episode."""
    env.action_space.seed(seed)
    seen, info = env.reset(seed=seed)
    out, over = [(seen, 0.0, info)], False
    while not over:
        action = env.action_space.sample() if actions is None else actions[len(out) - 1]
        seen, reward, over, _, info = env.step(action)
        out.append((seen, reward, info))
    return out


def assert_same(one, other):
    for (a, r, i), (b, s, j) in zip(one, other, strict=True):
        assert np.array_equal(a, b)
        assert r == s
        assert i == j


def is_flat(env):
    """Whether libraries that know vectors alone take this env."""
    space = env.action_space
    return len(env.observation_space.shape) == 1 and not isinstance(space, spaces.Dict) and len(space.shape) < 2


def legal(env, count, seed=0):
    """So many actions, drawn."""
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


@pytest.mark.parametrize(("env_id", "options"), [*VARIANTS, *REST, *cases(OTHERS, pytest.mark.slow)])
def test_gymnasiums_checker_passes_with_warnings_as_errors(env_id, options):
    env = gym.make(env_id, backend="tiny", context="train", render_mode="ansi", **options).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


def has_cls(env_id, options):
    """Whether the mean states of the coming batch can be shown: rows are not shown one by one, and not selected."""
    return options.get("granularity") != "instance" and not EnvSpec(env_id).family.selects


@pytest.mark.parametrize("observation_kind", ["vector", "cls"])
@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_stable_baselines_checker_passes(make_env, env_id, options, observation_kind):
    if observation_kind == "cls" and not has_cls(env_id, options):
        with pytest.raises(KDGymError, match=r"always that of the|not yet selected"):
            make_env(env_id, observation="cls", **options)
        return
    env = make_env(env_id, observation=observation_kind, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env if is_flat(env) else FlatEnv(env))


@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_a_flat_env_is_the_env_below_in_one_dimension(make_env, env_id, options):
    env, flat = make_env(env_id, **options), FlatEnv(make_env(env_id, **options))
    assert flat.observation_space.shape == (np.prod(env.observation_space.shape),)
    seen, _ = env.reset(seed=1)
    assert np.array_equal(flat.reset(seed=1)[0], seen.ravel())
    for action in legal(env, 2):
        one, space = env.step(action), env.action_space
        other = flat.step(spaces.flatten(space, action) if not isinstance(space, spaces.Discrete) else action)
        assert np.array_equal(other[0], one[0].ravel())
        assert other[1:] == one[1:]


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_spec_survives_json_and_its_arguments_have_the_documented_defaults(env_id):
    spec = gym.spec(env_id)
    assert gym.envs.registration.EnvSpec.from_json(spec.to_json()).id == spec.id
    assert env_arguments(env_id)["context"].default == "default"


REWARDS = [(ONE, {"reward": reward}) for reward in ("accuracy", "relative", "batch_ce", "batch_ce_kd", "batch_mixed")]


@pytest.mark.parametrize(("env_id", "options"), [*VARIANTS, *REWARDS])
def test_rollouts_are_functions_of_the_seed(make_env, env_id, options):
    env, other = (make_env(env_id, context="train", **options) for _ in "ab")
    first, second = rollout(env, 5), rollout(env, 6)
    assert_same(first, rollout(env, 5))
    assert_same(second, rollout(other, 6))
    assert not np.array_equal(first[-1][0], second[-1][0])


def test_unseeded_episodes_tell_their_seed_and_can_be_replayed(make_env):
    env = make_env(context="train")
    env.reset(seed=1)
    _, info = env.reset()
    assert 0 <= info["episode_seed"] < TRAIN_SEEDS
    actions = legal(env, env.family.decisions)
    drawn = [env.step(a)[1] for a in actions]
    again = rollout(make_env(context="train"), info["episode_seed"], actions)
    assert drawn == [r for _, r, _ in again[1:]]


def test_equal_bits_in_a_new_process(make_env):
    script = (
        "import gymnasium as gym, json, torch; import kd_gym; torch.set_num_threads(1)\n"
        f"e = gym.make('{ONE}', backend='tiny', context='noise-30'); o, _ = e.reset(seed=3); out = [o.tolist()]\n"
        "for _ in range(5): o, r, *_ = e.step([0.5, 1, -1, 0]); out.append([o.tolist(), r])\n"
        "print(json.dumps(out))"
    )
    texts = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in "ab"]
    assert texts[0].stdout == texts[1].stdout
    env = make_env(context="noise-30")
    expected = [env.reset(seed=3)[0].tolist()]
    for _ in range(5):
        seen, reward, *_ = env.step(np.array([0.5, 1, -1, 0], np.float32))
        expected.append([seen.tolist(), reward])
    assert json.loads(texts[0].stdout) == expected


def test_rewards_sum_to_the_drop_whatever_the_rhythm_of_evaluation(make_env):
    actions = [np.array([0.1 * i, 0.5, -0.5, 0], np.float32) for i in range(5)]
    every, third = (rollout(make_env(reward_every=k), 3, actions) for k in (1, 3))
    total = every[0][2]["reward_split"]["cross_entropy"] - every[-1][2]["reward_split"]["cross_entropy"]
    assert sum(r for _, r, _ in every) == pytest.approx(total)
    assert sum(r for _, r, _ in third) == pytest.approx(total)
    assert [r != 0 for _, r, _ in third] == [False, False, False, True, False, True]
    assert third[1][2]["reward_split"] == third[0][2]["reward_split"]  # between evaluations: the last metric


def test_relative_reward_of_the_uniform_control_is_zero(make_env):
    uniform = [np.zeros(4, np.float32)] * 5
    assert [r for _, r, _ in rollout(make_env(reward="relative"), 3, uniform)[1:]] == pytest.approx([0] * 5, abs=1e-6)
    other = [np.array([1, -1, -1, -1], np.float32)] * 5
    assert any(abs(r) > 1e-4 for _, r, _ in rollout(make_env(reward="relative"), 3, other)[1:])


@pytest.mark.parametrize("env_id", [f"{family}-SST2-v0" for family in FAMILIES])
def test_relative_reward_of_the_uniform_control_is_zero_in_every_family(make_env, env_id):
    for options in variants(env_id):
        if options["action"] == "weights":
            env = make_env(env_id, reward="relative", **options)
            uniform = [np.zeros(env.action_space.shape, np.float32)] * env.family.decisions
            rewards = [r for _, r, _ in rollout(env, 3, uniform)[1:]]
            assert rewards == pytest.approx([0] * len(rewards), abs=1e-6)


@pytest.mark.parametrize("every", [1, 3, None])
@pytest.mark.parametrize("options", [{}, {"granularity": "instance"}])
def test_relative_reward_is_zero_at_any_rhythm_of_decisions_and_evaluations(make_env, options, every):
    env = make_env("TeacherWeight-SST2-v0", reward="relative", reward_every=every, **options)
    uniform = [np.zeros(env.action_space.shape, np.float32)] * env.family.decisions
    steps = rollout(env, 3, uniform)[1:]
    assert [r for _, r, _ in steps] == pytest.approx([0] * len(steps), abs=1e-6)
    assert any(info["reward_terms"]["uniform_drop"] != 0 for _, _, info in steps)


def test_actions_become_the_weights_that_the_page_promises(make_env):
    def control(chosen, **kwargs):
        env = make_env(**kwargs)
        env.reset(seed=0)
        return list(env.step(chosen)[4]["control"].values())

    assert control(np.array([1, -1, -1, 0], np.float32)) == pytest.approx([2 / 3, 0, 0, 1 / 3])
    assert control(np.full(4, -1, np.float32)) == [0.25] * 4
    assert control(2, action="choice") == [0, 0, 1, 0]
    assert control(np.array([1, 1, 0, 0], np.int8), action="multi") == [0.5, 0.5, 0, 0]


def test_empty_selection_keeps_the_control_and_is_counted(make_env):
    env = make_env(action="multi")
    env.reset(seed=0)
    env.step(np.array([0, 1, 0, 0], np.int8))
    info = env.step(np.zeros(4, np.int8))[4]
    assert list(info["control"].values()) == [0, 1, 0, 0]
    assert info["empty_selections"] == 1


def illegal(space):
    """Actions that are no elements of a space."""
    if isinstance(space, spaces.Dict):
        drawn = space.sample()
        first, *others = drawn
        wrong = [{**drawn, first: part} for part in illegal(space[first])]
        return [*wrong, {name: drawn[name] for name in others}, {**drawn, "more": drawn[first]}, list(drawn.values())]
    if isinstance(space, spaces.Discrete):
        return [-1, space.n, 0.5, np.nan, "x", None, [0, 0]]
    cut = np.zeros(space.shape, space.dtype)[..., :-1]
    return [np.full(space.shape, 2), np.full(space.shape, np.nan), np.full(space.shape, 0.5)[None], cut, "x", None]


@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_illegal_actions_are_a_clear_error_and_change_nothing(make_env, env_id, options):
    env = make_env(env_id, **options)
    env.reset(seed=0)
    for bad in illegal(env.action_space):
        with pytest.raises((KDGymError, ValueError)):
            env.step(bad)
    assert env.step(env.action_space.sample())[4]["updates"] == env.family.updates


@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_a_diverged_student_terminates_with_a_bounded_penalty(make_env, env_id, options):
    env = make_env(env_id, **options)
    env.reset(seed=0)
    state = env.episodes.process.snapshot()
    state.tensors["param.classifier.weight"][0] = np.inf
    env.episodes.process.restore(state)
    seen, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert (reward, terminated, truncated) == (FAILURE_REWARD, True, False)
    assert info["failure"]
    assert env.observation_space.contains(seen)
    with pytest.raises(KDGymError, match="reset"):
        env.step(env.action_space.sample())


@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_fork_and_restore_by_use(make_env, env_id, options):
    env = make_env(env_id, context="train", **options)
    actions = legal(env, env.family.decisions)
    env.reset(seed=2)
    env.step(actions[0])
    fork, kept = env.fork(), env.snapshot()
    fork.step(actions[-1])

    def go_on():
        steps = (env.step(action) for action in actions[1:])
        return [(seen, reward, info) for seen, reward, _, _, info in steps]

    straight = go_on()
    env.restore(kept)
    assert_same(straight, go_on())
    assert env.reset()[1]["episode_seed"] == fork.reset()[1]["episode_seed"]


@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_vector_env_is_the_single_env_many_times(make_env, env_id, options):
    vector = gym.make_vec(env_id, num_envs=3, backend="tiny", context="train", **options)
    seen, infos = vector.reset(seed=[4, 5, 6])
    vector.action_space.seed(0)
    singles = [make_env(env_id, context="train", **options) for _ in range(3)]
    starts = [env.reset(seed=4 + i) for i, env in enumerate(singles)]
    assert np.allclose(seen, [s for s, _ in starts], atol=1e-4)
    assert infos["episode_seed"].tolist() == [4, 5, 6]
    last_step = singles[0].family.decisions - 1
    for step in range(last_step + 1):
        actions = vector.action_space.sample()
        seen, rewards, terminated, _, infos = vector.step(actions)
        for i, (env, action) in enumerate(zip(singles, iterate(vector.action_space, actions), strict=True)):
            one_seen, one_reward, one_over, _, one_info = env.step(action)
            last = infos["final_obs"][i] if one_over else seen[i]
            assert np.allclose(last, one_seen, atol=1e-3)
            assert rewards[i] == pytest.approx(one_reward, abs=1e-4)
            assert terminated[i] == one_over == (step == last_step)
            shown = infos["final_info"] if one_over else infos
            assert shown["updates"][i] == one_info["updates"]
            assert shown["flops"][i] == one_info["flops"]  # neighbours are not charged
    assert infos["updates"].tolist() == [0, 0, 0]  # the next episodes have begun in the same step
    assert vector.observation_space.contains(seen)


def test_stable_baselines_face_shows_the_ended_episode():
    from kd_gym.envs.sb3 import SB3VecEnv

    face = SB3VecEnv(gym.make_vec(ONE, num_envs=2, backend="tiny"))
    face.seed(3)
    face.reset()
    assert [i["episode_seed"] for i in face.reset_infos] == [3, 4]
    for _ in range(5):
        seen, _, dones, infos = face.step(np.zeros((2, 4), np.float32))
    assert dones.all()
    for slot, info in enumerate(infos):
        assert info["updates"] == 20
        assert info["TimeLimit.truncated"] is False
        assert info["terminal_observation"][0] == 1.0  # its progress
        assert seen[slot][0] == 0.0


@pytest.mark.parametrize("env_id", DEFAULTS)
def test_interleaved_envs_do_not_notice_each_other(make_env, env_id):
    one, other = make_env(env_id), make_env(env_id)
    actions = legal(one, one.family.decisions)
    alone = rollout(make_env(env_id), 1, actions)
    one.reset(seed=1)
    other.reset(seed=2)
    mixed = []
    for action, another in zip(actions, reversed(actions), strict=True):
        mixed.append(one.step(action))
        other.step(another)
    assert [r for _, r, _ in alone[1:]] == [m[1] for m in mixed]


@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_no_env_opens_report_or_select(make_env, monkeypatch, env_id, options):
    opened = []
    real = TaskData.split
    monkeypatch.setattr(TaskData, "split", lambda self, name: (opened.append(name), real(self, name))[1])
    kind = "cls" if has_cls(env_id, options) else "vector"
    rollout(make_env(env_id, reward="relative", context="held-out", observation=kind, **options), 0)
    vector = gym.make_vec(env_id, num_envs=2, backend="tiny", **options)
    vector.reset(seed=0)
    for _ in range(6):
        vector.step(vector.action_space.sample())
    assert set(opened) == {"train", "reward"}


@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_observation_table_is_that_of_the_vector(make_env, env_id, options):
    kind = "cls" if has_cls(env_id, options) else "vector"
    env = make_env(env_id, observation=kind, **options)
    table = observation.table_text(env.episodes.features)
    assert env.observation_space.shape[-1] == sum(f.size for f in env.episodes.features)
    assert all(f.name in table for f in env.episodes.features)
    steps = rollout(env, 0)
    assert all(env.observation_space.contains(seen) for seen, _, _ in steps)
    expected = np.linspace(0, 1, env.family.decisions + 1)
    for seen, progress in zip((seen for seen, _, _ in steps), expected, strict=True):
        assert seen[..., 0] == pytest.approx(progress, abs=1e-6)  # of the vector, or of every row


def test_contexts_are_drawn_from_the_published_sets_and_never_shown(make_env):
    assert not {c.name for c in TRAIN} & {c.name for c in HELD_OUT}
    for first in (0, 7, 10**9, 2 * 10**9 + 14):  # as many seeds in a row as contexts have each once
        assert {draw_context("train", first + i).name for i in range(7)} == {context.name for context in TRAIN}
    assert len({draw_context("train", 7 * i).name for i in range(40)}) == 7  # in an order of their own
    drawn = {draw_context("train", seed).name for seed in range(200)}
    assert drawn == {c.name for c in TRAIN}
    for name in SETS:
        env = make_env(context=name)
        _, info = env.reset(seed=1)
        assert info["context"] in {c.name for c in SETS[name]}
    # the same seed and no step taken: contexts that leave the first losses alone look alike
    first = [make_env(context=name).reset(seed=1)[0] for name in ("default", "noise-30", "noise-20-slow")]
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(first[0], first[2])


@pytest.mark.parametrize("env_id", DEFAULTS)
def test_pictures(make_env, env_id):
    env = make_env(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (320, 480, 3)
    env.step(env.action_space.sample())
    picture = env.render()
    assert picture.shape == (320, 480, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    text = make_env(env_id, render_mode="ansi")
    text.reset(seed=0)
    assert "update    0" in text.render()
    assert all(label in text.render() for label in env.family.labels)


def test_importing_the_package_is_light():
    code = "import time; t = time.perf_counter(); import kd_gym; print(time.perf_counter() - t, end=' ')"
    code += "; import sys; print('torch' in sys.modules)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds = min(float(r.stdout.split()[0]) for r in runs)
    assert runs[0].stdout.split()[1] == "False"
    assert seconds < 0.5


def test_cost_counts_student_and_evaluation(make_env):
    env = make_env()
    env.reset(seed=0)
    start = env.cost
    env.step(np.zeros(4, np.float32))
    assert env.cost["student_flops"] > start["student_flops"] > 0  # measuring the scales counts too
    assert env.cost["evaluation_flops"] == 2 * start["evaluation_flops"]
    assert env.cost["student_seconds"] > 0
