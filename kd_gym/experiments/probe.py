"""What a policy's decisions are worth: one episode, and beside each what the uniform control would have done."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kd_gym.agents.protocol import Controller
from kd_gym.envs.faces import DistillationEnv


@dataclass(frozen=True)
class Probe:
    """One value for each decision of an episode.

    Attributes:
        rewards: what it brought.
        values: what the agent expected of the rest of the episode before it; empty where it estimates nothing.
        advantages: how much further the cross-entropy on `reward` fell than it would have under the uniform control for
            this one decision, from the same state.
    """

    rewards: list[float]
    values: list[float]
    advantages: list[float]


def probe(env: DistillationEnv, controller: Controller, seed: int) -> Probe:
    """Play one episode of an agent that learns, with a fork beside each decision.

    Args:
        env: of the kind that it controls; it is reset.
        controller: the agent. It must not act between decisions, because a fork has no hook.
        seed: of the episode.
    """
    seen, _ = env.reset(seed=seed)
    family, rows = env.family, env.episodes.reward_batches
    if hasattr(controller, "begin"):  # an agent of one's own need have neither this nor `value`
        controller.begin(env)
    state: Any = None
    start, over = np.ones(1, np.bool_), False
    rewards: list[float] = []
    values: list[float] = []
    advantages: list[float] = []
    while not over:
        value = controller.value(seen) if hasattr(controller, "value") else None
        if value is not None:
            values.append(value)
        action, state = controller.predict(seen, state, start)
        other = env.episodes.process.fork()
        other.advance(family.uniform(1), family.updates)
        seen, reward, terminated, truncated, _ = env.step(action)
        after = [process.evaluate(rows).cross_entropy[0] for process in (other, env.episodes.process)]
        advantages.append(float(after[0] - after[1]))
        rewards.append(float(reward))
        over, start = terminated or truncated, np.zeros(1, np.bool_)
    return Probe(rewards, values, advantages)
