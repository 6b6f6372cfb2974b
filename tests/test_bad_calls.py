"""Wrong calls of an env raise with what would be right, and change nothing."""

import gymnasium as gym
import numpy as np
import pytest

from kd_gym.errors import KDGymError

pytestmark = pytest.mark.usefixtures("own_folder")


BAD_ACTIONS = {
    "weights": [
        np.array([1.01, 0, 0, 0]), np.array([-1.5, 0, 0, 0]), np.array([np.nan, 0, 0, 0]),
        np.array([0, np.inf, 0, 0]), np.zeros(3), np.zeros(5), np.zeros((4, 1)), 0.5,
    ],
    "multi": [
        np.array([0, 1, 2, 0]), np.array([0, -1, 0, 0]), np.array([1, 0, 0.5, 0]), np.array([np.nan, 0, 0, 0]),
        np.zeros(3, np.int8), np.zeros(5, np.int8), 1,
    ],
    "choice": [4, -1, np.int64(99), 1.7, np.nan, np.inf, np.zeros(4), np.array([1, 2])],
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ACTIONS)
def test_an_action_outside_the_space_raises_and_changes_nothing(make_env, kind):
    env = make_env(action=kind)
    env.reset(seed=0)
    for action in BAD_ACTIONS[kind]:
        with pytest.raises(KDGymError, match="action"):
            env.step(action)
    assert env.episodes.info(0)["updates"] == 0
    env.step(env.action_space.sample())
    assert env.episodes.info(0)["updates"] > 0


@pytest.mark.parametrize("kind", BAD_ACTIONS)
def test_an_action_outside_the_space_raises_in_the_vector_env_too(kind):
    env = gym.make_vec("KnowledgeSelect-SST2-v0", num_envs=2, backend="tiny", action=kind).unwrapped
    env.reset(seed=0)
    fine = env.single_action_space.sample()
    for action in BAD_ACTIONS[kind]:
        if np.shape(action) != np.shape(fine):
            continue
        with pytest.raises(KDGymError, match="action"):
            env.step(np.stack([np.asarray(fine, float), np.asarray(action, float)]))
    for count in (1, 3):
        with pytest.raises(KDGymError, match=f"{count} actions were given for 2 students"):
            env.step(np.stack([fine] * count))
    assert env.episodes.info(0)["updates"] == 0


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3, 4]])
def test_a_wrong_number_of_seeds_raises(seeds):
    env = gym.make_vec("KnowledgeSelect-SST2-v0", num_envs=3, backend="tiny").unwrapped
    with pytest.raises(KDGymError, match=f"{len(seeds)} seeds were given for 3 students"):
        env.reset(seed=seeds)
    env.reset(seed=[1, 2, 3])


def test_a_step_before_reset_or_after_the_end_raises(make_env):
    env = make_env()
    with pytest.raises(KDGymError, match="call reset"):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    while not env.step(env.action_space.sample())[2]:
        pass
    with pytest.raises(KDGymError, match="call reset"):
        env.step(env.action_space.sample())


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"action": "weight"}, "weights"),
        ({"observation": "vectors"}, "vector"),
        ({"reward": "acuracy"}, "accuracy"),
        ({"reward_every": 0}, "at least 1"),
        ({"context": "heldout"}, "held-out"),
        ({"device": "gpu"}, "cuda"),
    ],
)
def test_a_wrong_argument_of_an_env_raises_with_the_valid_ones(make_env, kwargs, said):
    with pytest.raises(KDGymError, match=said):
        make_env(**kwargs)
    with pytest.raises(KDGymError, match=said):
        gym.make_vec("KnowledgeSelect-SST2-v0", num_envs=2, backend="tiny", **kwargs)


def test_no_student_at_all_raises():
    with pytest.raises(KDGymError, match="at least 1"):
        gym.make_vec("KnowledgeSelect-SST2-v0", num_envs=0, backend="tiny")
