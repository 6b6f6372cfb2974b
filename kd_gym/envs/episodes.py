"""N distillation runs as N episodes: the part that every env family shares.

From a control to an observation, a reward and an info: the faces (`faces.py`) add Gymnasium's API on top, the
families (`knowledge_select.py`) the meaning of an action.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kd_gym.backend.state import State
from kd_gym.backend.terms import Control, Evaluation, Trace
from kd_gym.envs import observation
from kd_gym.envs.contexts import context_set, draw_context
from kd_gym.envs.lab import Lab
from kd_gym.envs.relative import uniform_metrics
from kd_gym.errors import KDGymError

RewardKind = Literal["cross_entropy", "accuracy", "relative"]
ObservationKind = Literal["vector", "cls"]
FAILURE_REWARD = -1.0
_SMOOTH = 0.7  # weight of the past in the smoothed losses
_FIELDS = (
    "control", "loss", "cross_entropy", "accuracy", "slope", "gain", "terms", "trace", "decisions", "empty", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class EpisodeConfig:
    """What the keyword arguments of an env say about its episodes.

    Attributes:
        observation: `vector`, or `cls`, which adds mean [CLS] states of the coming batch.
        reward: `cross_entropy` (its drop on the reward split), `accuracy` (its gain), or `relative` (the drop of
            cross-entropy less that of the uniform control with the same seed).
        reward_every: decisions between evaluations; those between get reward 0 and see the last metric.
        context: `default`, `train`, `held-out`, or one published context by name.
    """

    observation: ObservationKind = "vector"
    reward: RewardKind = "cross_entropy"
    reward_every: int = 1
    context: str = "default"

    def check(self) -> None:
        """Raise `KDGymError` for a value that no env has."""
        context_set(self.context)
        for value, valid in ((self.observation, ObservationKind), (self.reward, RewardKind)):
            if value not in valid.__args__:  # type: ignore[attr-defined]
                raise KDGymError(f"{value!r} is none of {', '.join(valid.__args__)}")  # type: ignore[attr-defined]
        if self.reward_every < 1:
            raise KDGymError(f"reward_every must be at least 1, not {self.reward_every}")


class Episodes:
    """N runs, each at its own decision; what one decision costs and brings."""

    def __init__(self, lab: Lab, count: int, config: EpisodeConfig) -> None:
        config.check()
        self.lab = lab
        self.config = config
        self.recipe = lab.recipe
        self.knowledge = lab.recipe.process.knowledge
        self.process = lab.process(count, (c.teachers for c in context_set(config.context)))
        self.reward_batches = lab.data.split("reward").to(lab.device).batches(lab.recipe.reward_rows)
        k = len(self.knowledge)
        widths = (lab.init.arch.hidden, lab.teacher().store.width) if config.observation == "cls" else (None, None)
        self.features = observation.features(self.knowledge, *widths)
        self.seed = np.zeros(count, np.int64)
        self.decisions = np.zeros(count, np.int64)
        self.empty = np.zeros(count, np.int64)
        self.control = np.full((count, k), 1 / k)
        self.loss = np.zeros((count, k))
        self.trace = np.zeros((count, 4))  # agreement, teacher accuracy, entropy, gradient norm
        self.cross_entropy = np.zeros(count)
        self.accuracy = np.zeros(count)
        self.slope = np.zeros(count)
        self.gain = np.zeros(count)  # accuracy won by the last evaluated decisions
        self.terms = np.zeros((count, 3))  # drop of cross-entropy, the uniform control's drop, penalty

    # ------------------------------------------------------------------ one episode

    def begin(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Start episodes in these slots: everything random follows from the seed."""
        at = np.asarray(slots)
        contexts = [draw_context(self.config.context, seed) for seed in seeds]
        self.process.reset(seeds, contexts, slots)
        charged = np.isin(np.arange(len(self.seed)), at)
        evaluation = self.process.evaluate(self.reward_batches, charged)
        self.seed[at] = seeds
        for array in (self.decisions, self.empty, self.trace, self.slope, self.gain, self.terms):
            array[at] = 0
        self.control[at] = 1 / len(self.knowledge)
        self.loss[at] = 1.0
        self.cross_entropy[at] = _bounded(evaluation)[at]
        self.accuracy[at] = evaluation.accuracy.numpy()[at]

    def step(self, knowledge: NDArray[np.float64], empty: NDArray[np.bool_]) -> NDArray[np.float64]:
        """One decision of every episode: knowledge weights [N, K]; returns rewards [N].

        `empty` [N] marks empty selections, which keep the control before.
        """
        self.control = np.where(empty[:, None], self.control, knowledge)
        self.empty += empty
        trace = self.process.advance(Control(torch.from_numpy(self.control)), self.recipe.updates)
        self._record(trace)
        self.decisions += 1
        failed = self.process.failed.numpy()
        due = (self.decisions % self.config.reward_every == 0) | self.terminated
        rewards = np.zeros(len(due))
        self.terms[:] = 0
        if due.any():
            self._measure(self.process.evaluate(self.reward_batches, due), due & ~failed)
            rewards = self._reward(due & ~failed)
        self.terms[failed] = (0, 0, FAILURE_REWARD)
        return np.where(failed, FAILURE_REWARD, rewards)

    def _record(self, trace: Trace) -> None:
        scaled = (trace.losses / self.process.scale.mean(-1).float().cpu()).numpy()
        self.loss = _SMOOTH * self.loss + (1 - _SMOOTH) * scaled
        columns = (trace.agreement, trace.teacher_accuracy, trace.entropy, trace.gradient_norm)
        self.trace = torch.stack(columns, 1).double().numpy()

    def _measure(self, evaluation: Evaluation, due: NDArray[np.bool_]) -> None:
        now, right = _bounded(evaluation), evaluation.accuracy.double().numpy()
        self.slope = np.where(due, now - self.cross_entropy, self.slope)
        self.terms[:, 0] = np.where(due, self.cross_entropy - now, 0)
        self.gain = np.where(due, right - self.accuracy, 0)
        self.cross_entropy = np.where(due, now, self.cross_entropy)
        self.accuracy = np.where(due, right, self.accuracy)

    def _reward(self, due: NDArray[np.bool_]) -> NDArray[np.float64]:
        if self.config.reward == "accuracy":
            return self.gain
        if self.config.reward == "relative":
            every = self.config.reward_every
            for slot in np.flatnonzero(due):
                path = uniform_metrics(self.lab, self.process.contexts[slot], int(self.seed[slot]))
                now = int(self.decisions[slot])
                self.terms[slot, 1] = path[(now - 1) // every * every] - path[now]
        return self.terms[:, 0] - self.terms[:, 1]

    @property
    def terminated(self) -> NDArray[np.bool_]:
        """Whose budget is spent, or whose student has failed [N]."""
        spent = (self.process.update >= self.recipe.process.horizon).numpy()
        over: NDArray[np.bool_] = np.logical_or(spent, self.process.failed.numpy())
        return over

    # ------------------------------------------------------------------ what is seen

    def observe(self) -> observation.Array:
        """The observations [N, F]."""
        recipe = self.recipe.process
        progress = np.minimum(self.process.update.numpy() / recipe.horizon, 1)
        rates = np.array([context.rate for context in self.process.contexts])
        values = {
            "progress": progress,
            "budget_left": 1 - progress,
            "control": self.control,
            "loss": observation.squash(self.loss),
            "cross_entropy": observation.squash(self.cross_entropy),
            "slope": 10 * self.slope,
            "accuracy": self.accuracy,
            "agreement": self.trace[:, 0],
            "teacher_accuracy": self.trace[:, 1],
            "entropy": self.trace[:, 2] / math.log(self.lab.init.arch.classes),
            "gradient_norm": observation.squash(self.trace[:, 3]),
            "learning_rate": self.process.learning_rate().numpy() / rates / recipe.learning_rate,
        }
        if self.config.observation == "cls":
            student, teacher = self.process.peek()
            values |= {"student_cls": student.cpu().numpy(), "teacher_cls": teacher.cpu().numpy()}
        return observation.vector(self.features, values)

    def info(self, slot: int) -> dict[str, Any]:
        """What is known of an episode, as a function of (id, kwargs, seed, actions)."""
        drop, uniform, penalty = (float(x) for x in self.terms[slot])
        return {
            "episode_seed": int(self.seed[slot]),
            "context": self.process.contexts[slot].name,
            "score_name": f"report {self.lab.data.task.metrics[0]}",
            "updates": int(self.process.update[slot]),
            "control": dict(zip(self.knowledge, self.control[slot].tolist(), strict=True)),
            "losses": dict(zip(self.knowledge, self.loss[slot].tolist(), strict=True)),
            "reward_terms": {
                "cross_entropy_drop": drop,
                "uniform_drop": uniform,
                "accuracy_gain": float(self.gain[slot]),
                "penalty": penalty,
            },
            "reward_split": {
                "cross_entropy": float(self.cross_entropy[slot]),
                "accuracy": float(self.accuracy[slot]),
            },
            "student": {
                "agreement": float(self.trace[slot, 0]),
                "teacher_accuracy": float(self.trace[slot, 1]),
                "entropy": float(self.trace[slot, 2]),
                "gradient_norm": float(np.nan_to_num(self.trace[slot, 3], nan=-1.0, posinf=-1.0)),
            },
            "flops": int(self.process.cost.flops[slot]),
            "empty_selections": int(self.empty[slot]),
            "failure": "the student's loss or gradient is not finite" if self.process.failed[slot] else "",
        }

    # ------------------------------------------------------------------ states

    def snapshot(self) -> tuple[State, dict[str, NDArray[Any]]]:
        """The students' states and the bookkeeping of their episodes."""
        return self.process.snapshot(), {name: getattr(self, name).copy() for name in _FIELDS}

    def restore(self, state: tuple[State, dict[str, NDArray[Any]]]) -> None:
        """Go on from a snapshot, bit by bit."""
        self.process.restore(state[0])
        for name, value in state[1].items():
            setattr(self, name, value.copy())


def _bounded(evaluation: Evaluation) -> NDArray[np.float64]:
    """Cross-entropy with a ceiling, so that no reward is without bound."""
    loss: NDArray[np.float64] = evaluation.cross_entropy.double().numpy()
    return np.nan_to_num(loss, nan=10.0, posinf=10.0).clip(max=10.0)
