"""Bandits over the single choices of a family, that learn within one episode and forget after it.

Their reward is the drop of cross-entropy on the reward split over the last decision, read off the observation, so
they are controllers like others: their memory is the `state` of `predict`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kd_gym.agents.protocol import Array, Controller

State = tuple[Array, ...]


class _Bandit(Controller):
    """A choice of one of n arms at every decision."""

    actions = ("choice",)
    fits = ("KnowledgeSelect", "TeacherWeight")
    options: ClassVar = {"reward_every": 1}

    @property
    def arms(self) -> int:
        """The number of arms."""
        return len(self.family.labels)

    def _gain(self, observation: Array) -> float:
        """The drop of cross-entropy over the last decision, in [-0.1, 0.1]."""
        return -float(self.see(observation, "slope")[0]) / 10

    def predict(
        self,
        observation: Array,
        state: State | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, State | None]:
        """Arms for one observation or a batch, and what was learnt so far."""
        single = observation.shape == self.observation_space.shape
        rows = observation[None] if single else observation
        starts = np.zeros(len(rows), np.bool_) if episode_start is None else np.asarray(episode_start)
        fresh = self._fresh(rows.shape[1])
        arms, memories = [], []
        for i, row in enumerate(rows):
            memory = fresh if starts[i] or state is None else tuple(part[i] for part in state)
            arm, memory = self._choose(row, memory)
            arms.append(arm)
            memories.append(memory)
        after = tuple(np.stack(parts) for parts in zip(*memories, strict=True))
        return np.asarray(arms[0] if single else arms), after

    def _fresh(self, width: int) -> State:
        """The memory before the first decision of an episode."""
        raise NotImplementedError

    def _choose(self, observation: Array, memory: State) -> tuple[int, State]:
        """Learn from the last decision, then choose."""
        raise NotImplementedError


@dataclass(frozen=True)
class Exp3Config:
    """Settings of EXP3."""

    exploration: float = 0.2
    """share of decisions that are drawn at random"""


class Exp3(_Bandit):
    """EXP3 (Auer et al., 2002), an adversarial bandit: exponential weights of importance-weighted gains."""

    Config = Exp3Config

    def _fresh(self, width: int) -> State:
        return np.zeros(self.arms), np.full(1, -1.0), np.full(1, 1.0)  # sums, last arm and its probability

    def _choose(self, observation: Array, memory: State) -> tuple[int, State]:
        sums, last, probability = (part.copy() for part in memory)
        gamma, n = self.config.exploration, self.arms
        if last[0] >= 0:
            gain = np.clip(0.5 + 5 * self._gain(observation), 0, 1)
            sums[int(last[0])] += gamma / n * gain / probability[0]
        weights = np.exp(sums - sums.max())
        p = (1 - gamma) * weights / weights.sum() + gamma / n
        arm = int(self.generator(observation).choice(n, p=p))
        return arm, (sums, np.array([float(arm)]), p[[arm]])


@dataclass(frozen=True)
class LinUCBConfig:
    """Settings of LinUCB."""

    width: float = 0.05
    """how many deviations above its estimate an arm is judged"""
    ridge: float = 1.0
    """weight of the prior"""


class LinUCB(_Bandit):
    """LinUCB with disjoint arms (Li et al., 2010): a ridge regression of the gain on the observation for each arm."""

    Config = LinUCBConfig

    def _fresh(self, width: int) -> State:
        gram = np.tile(self.config.ridge * np.eye(width), (self.arms, 1, 1))
        return gram, np.zeros((self.arms, width)), np.full(1, -1.0), np.zeros(width)

    def _choose(self, observation: Array, memory: State) -> tuple[int, State]:
        gram, moment, last, before = (part.copy() for part in memory)
        if last[0] >= 0:
            gram[int(last[0])] += np.outer(before, before)
            moment[int(last[0])] += self._gain(observation) * before
        x = observation.astype(np.float64)
        solved = np.linalg.solve(gram, np.broadcast_to(x, (self.arms, len(x)))[..., None])[..., 0]
        bound = (solved * moment).sum(1) + self.config.width * np.sqrt(np.maximum(solved @ x, 0))
        arm = int(np.flatnonzero(bound >= bound.max() - 1e-12)[0])
        return arm, (gram, moment, np.array([float(arm)]), x)
