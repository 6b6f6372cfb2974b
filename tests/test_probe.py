"""What decisions are worth: measured by forks, so exactly nothing where the policy is the uniform control itself."""

import gymnasium as gym
import numpy as np
import pytest

from kd_gym.agents.protocol import AGENTS, make_controller
from kd_gym.experiments.probe import probe
from kd_gym.experiments.watch import entropy_of

LEARNERS = [name for name in AGENTS.names() if getattr(AGENTS.get(name), "learns", False)]


def test_the_uniform_control_is_worth_as_much_as_itself(make_env):
    env = make_env(context="noise-40")
    found = probe(env, make_controller("uniform", env), 3)
    assert found.advantages == [0.0] * env.family.decisions
    assert found.values == []


def test_an_advantage_is_what_the_two_decisions_lead_to_from_the_same_state(make_env):
    env = make_env(horizon=60)
    feature, uniform = (make_controller(name, env) for name in ("single:feature", "uniform"))
    found = probe(env, feature, 3)
    seen, _ = env.reset(seed=3)
    rewards, advantages, over = [], [], False
    while not over:
        state = env.snapshot()
        *_, other = env.step(uniform.predict(seen)[0])
        env.restore(state)
        seen, reward, over, _, own = env.step(feature.predict(seen)[0])
        rewards.append(reward)
        advantages.append(other["reward_split"]["cross_entropy"] - own["reward_split"]["cross_entropy"])
    assert found.rewards == rewards  # the episode went on as if nothing had been forked
    assert found.advantages == pytest.approx(advantages, abs=1e-9)
    assert np.ptp(advantages) > 0.05


@pytest.mark.parametrize("agent", LEARNERS)
def test_every_agent_can_be_probed(agent):
    cls = AGENTS.get(agent)
    family = (cls.fits or ("KnowledgeSelect",))[0]
    env = gym.make(f"{family}-SST2-v0", backend="tiny", action=cls.actions[0], **cls.options).unwrapped
    found = probe(env, cls(env, seed=0), 5)
    assert len(found.advantages) == len(found.rewards) == env.family.decisions
    assert np.isfinite(found.advantages + found.values).all()
    assert len(found.values) in (0, len(found.rewards))
    assert (len(found.values) > 0) == (agent in ("ppo", "a2c", "aks"))


def test_entropy_of_weights():
    assert entropy_of(np.full((3, 4), 0.25)) == pytest.approx(1)
    assert entropy_of(np.eye(4)) == pytest.approx(0, abs=1e-9)
    assert entropy_of(np.zeros((1, 4))) == pytest.approx(0, abs=1e-6)
