"""The oracle one step ahead: try every control of a set on a copy of the student, and take the best."""

from typing import Any, ClassVar

import numpy as np
import torch

from kd_gym.agents.protocol import Array, Controller
from kd_gym.errors import KDGymError


class Greedy(Controller):
    """Forks the process at every decision, gives each copy another control, and takes the one whose cross-entropy on
    the `reward` split is lowest after the decision.

    It tries the uniform control, each single weight and all weights but one. What the copies cost is counted as the
    controller's.
    """

    actions = ("weights",)
    fits = ("KnowledgeSelect", "TeacherWeight")
    options: ClassVar = {"granularity": "batch"}
    reads_reward = True

    def __init__(self, env: Any, *, seed: int = 0, config: Any = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        n = len(self.family.labels)
        one = 2 * np.eye(n, dtype=np.float32) - 1
        self.candidates = np.concatenate([np.zeros((1, n), np.float32), one, -one])
        self._env: Any = None
        self._spent = 0

    def begin(self, env: Any) -> None:
        """Keep the env, whose process is forked."""
        self._env, self._spent = env, 0

    def act(self, observation: Array) -> Array:
        """The candidate that does best."""
        if self._env is None:
            raise KDGymError("greedy looks ahead in the env that it controls: call begin(env) after env.reset()")
        episodes = self._env.episodes
        count = len(self.candidates)
        copies = episodes.process.fork([0] * count)
        before = copies.cost.flops.sum()
        copies.advance(self.family.decide(list(self.candidates), episodes).control, self.family.updates)
        loss = copies.evaluate(episodes.reward_batches).cross_entropy
        self._spent += int(copies.cost.flops.sum() - before)
        loss = torch.where(copies.failed, torch.inf, loss.nan_to_num(nan=np.inf))  # a failed copy stays as it was
        return np.asarray(self.candidates[int(loss.argmin())])

    def cost(self, decisions: int) -> int:
        """What the copies have cost since `begin`."""
        return self._spent
