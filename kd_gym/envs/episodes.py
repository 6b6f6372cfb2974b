"""N distillation runs as N episodes: the part that every env family shares.

From a control to an observation, a reward and an info: the faces (`faces.py`) add Gymnasium's API on top, the
families (`knowledge_select.py`) the meaning of an action.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from kd_gym.backend.knowledge import KNOWLEDGE
from kd_gym.backend.live import TeacherKind
from kd_gym.backend.state import State
from kd_gym.backend.terms import Evaluation, Trace
from kd_gym.envs import observation
from kd_gym.envs.contexts import context_set, draw_context, teacher_sets
from kd_gym.envs.family import Decision, Family
from kd_gym.envs.lab import Lab, Rows
from kd_gym.envs.relative import uniform_metrics
from kd_gym.errors import KDGymError
from kd_gym.plugins import check_choice

RewardKind = Literal["cross_entropy", "accuracy", "relative", "batch_ce", "batch_ce_kd", "batch_mixed"]
ObservationKind = Literal["vector", "cls"]
FAILURE_REWARD = -1.0
BATCH_REWARDS = {"batch_ce": 1.0, "batch_ce_kd": 1.0, "batch_mixed": 0.5}  # how much batch losses weigh
_SMOOTH = 0.7  # weight of the past in the smoothed losses
_ZEROED = ("decisions", "empty", "agreement", "teacher_accuracy", "trace", "slope", "gain", "terms")
_FIELDS = (*_ZEROED, "control", "loss", "cross_entropy", "accuracy", "seed")


@dataclass(frozen=True)
class EpisodeConfig:
    """What the keyword arguments of an env say about its episodes.

    Attributes:
        observation: `vector`, or `cls`, which adds mean [CLS] states of the coming batch.
        reward: `cross_entropy` (its drop on the reward split), `accuracy` (its gain), `relative` (the drop of
            cross-entropy less that of the uniform control with the same seed), or one of three that are measured on
            the batch just trained on: `batch_ce`, `batch_ce_kd`, `batch_mixed`.
        reward_every: decisions between evaluations, the family's own by default; those between get reward 0 and see
            the last metric.
        context: `default`, `train`, `held-out`, or one published context by name.
        teacher: `stored` (frozen, looked up), `live` (it runs in the loop, and a controller may train it), or
            `untuned` (live, and at the start it and the students have a head of zeros).
        rows: what students are trained on: `train`, or `train+reward`, whose second part is clean in every context;
            then the reward says nothing, and there is only a score.
    """

    observation: ObservationKind = "vector"
    reward: RewardKind = "cross_entropy"
    reward_every: int | None = None
    context: str = "default"
    teacher: TeacherKind = "stored"
    rows: Rows = "train"

    def check(self, family: Family) -> None:
        """Raise `KDGymError` for a value that no env has, or not this one."""
        context_set(self.context)
        check_choice("observation", self.observation, ObservationKind)
        check_choice("reward", self.reward, RewardKind)
        if family.selects and self.reward in BATCH_REWARDS:
            raise KDGymError(f"reward {self.reward!r} has no meaning where rows are selected; take cross_entropy")
        if family.selects and self.observation == "cls":
            raise KDGymError("observation 'cls' shows the coming batch, which is not yet selected here; take vector")
        check_choice("teacher", self.teacher, TeacherKind)
        check_choice("rows", self.rows, Rows)
        if self.reward == "relative" and (self.teacher, self.rows) != ("stored", "train"):
            raise KDGymError("reward 'relative' is held against a stored teacher on train; take cross_entropy here")
        if self.teacher != "stored" and len(family.recipe.teacher_names()) > 1:
            raise KDGymError(f"several teachers are stored ones; teacher={self.teacher!r} is for ids with one teacher")
        for name in family.recipe.process.knowledge:
            if "tokens" in KNOWLEDGE.get(name).reads and self.teacher == "stored":
                raise KDGymError(f"{name!r} needs the states of all tokens, which no store holds; take teacher='live'")
        if self.reward_every is not None and self.reward_every < 1:
            raise KDGymError(f"reward_every must be at least 1, not {self.reward_every}")


class Episodes:
    """N runs, each at its own decision; what one decision costs and brings."""

    def __init__(self, family: Family, lab: Lab, count: int, config: EpisodeConfig) -> None:
        config.check(family)
        self.family = family
        self.lab = lab
        self.config = replace(config, reward_every=config.reward_every or family.reward_every)
        self.every = self.config.reward_every or 1
        self.recipe = lab.recipe
        self.knowledge = lab.recipe.process.knowledge
        self.process = lab.process(count, teacher_sets(config.context), config.teacher, config.rows)
        self.reward_batches = lab.data.split("reward").to(lab.device).batches(lab.recipe.reward_rows)
        self.features = family.features(lab, config.observation)
        self.seed = np.zeros(count, np.int64)
        self.decisions = np.zeros(count, np.int64)
        self.empty = np.zeros(count, np.int64)
        self.control = np.tile(family.initial(), (count, 1))
        self.loss = np.zeros((count, len(self.knowledge)))
        self.agreement = np.zeros((count, self.process.lessons.m))
        self.teacher_accuracy = np.zeros((count, self.process.lessons.m))
        self.trace = np.zeros((count, 2))  # entropy, gradient norm
        self.cross_entropy = np.zeros(count)
        self.accuracy = np.zeros(count)
        self.slope = np.zeros(count)
        self.gain = np.zeros(count)  # accuracy won by the last evaluated decisions
        self.terms = np.zeros((count, 4))  # drop of cross-entropy, the uniform control's drop, batch term, penalty

    # ------------------------------------------------------------------ one episode

    def begin(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Start episodes in these slots: everything random follows from the seed."""
        at = np.asarray(slots)
        contexts = [draw_context(self.config.context, seed) for seed in seeds]
        self.process.reset(seeds, contexts, slots)
        charged = np.isin(np.arange(len(self.seed)), at)
        evaluation = self.process.evaluate(self.reward_batches, charged)
        self.seed[at] = seeds
        for name in _ZEROED:
            getattr(self, name)[at] = 0
        self.control[at] = self.family.initial()
        self.loss[at] = 1.0
        self.cross_entropy[at] = _bounded(evaluation.cross_entropy)[at]
        self.accuracy[at] = evaluation.accuracy.numpy()[at]

    def step(self, decision: Decision) -> NDArray[np.float64]:
        """One decision of every episode; returns rewards [N]."""
        self.control = decision.shown
        self.empty += decision.empty
        trace = self.process.advance(decision.control, self.family.updates)
        self._record(trace)
        self.decisions += 1
        failed = self.process.failed.numpy()
        due = (self.decisions % self.every == 0) | self.terminated
        rewards = np.zeros(len(due))
        self.terms[:] = 0
        self.gain[:] = 0
        if due.any():
            self._measure(self.process.evaluate(self.reward_batches, due), due & ~failed)
            rewards = self._reward(due & ~failed)
        if self.config.reward in BATCH_REWARDS:
            self.terms[:, 2] = rewards = self._batch_reward()
        self.terms[failed] = (0, 0, 0, FAILURE_REWARD)
        return np.where(failed, FAILURE_REWARD, rewards)

    def _record(self, trace: Trace) -> None:
        losses, norm, entropy, agreement, accuracy = (part.numpy() for part in trace)
        self.loss = _SMOOTH * self.loss + (1 - _SMOOTH) * losses / self.process.scale.mean(-1).float().cpu().numpy()
        self.agreement = agreement.astype(np.float64)
        self.teacher_accuracy = accuracy.astype(np.float64)
        self.trace = np.stack((entropy, norm), 1).astype(np.float64)

    def _measure(self, evaluation: Evaluation, due: NDArray[np.bool_]) -> None:
        now, right = _bounded(evaluation.cross_entropy), evaluation.accuracy.double().numpy()
        self.slope = np.where(due, now - self.cross_entropy, self.slope)
        self.terms[:, 0] = np.where(due, self.cross_entropy - now, 0)
        self.gain = np.where(due, right - self.accuracy, 0)
        self.cross_entropy = np.where(due, now, self.cross_entropy)
        self.accuracy = np.where(due, right, self.accuracy)

    def _reward(self, due: NDArray[np.bool_]) -> NDArray[np.float64]:
        if self.config.reward == "accuracy":
            return self.gain
        if self.config.reward == "relative":
            for slot in np.flatnonzero(due):
                seed, updates = int(self.seed[slot]), self.every * self.family.updates
                path = uniform_metrics(self.lab, self.family, self.process.lessons.contexts[slot], seed, updates)
                now = -(-int(self.decisions[slot]) // self.every)  # the last evaluation may come early
                self.terms[slot, 1] = path[now - 1] - path[now]
        return self.terms[:, 0] - self.terms[:, 1]

    def _batch_reward(self) -> NDArray[np.float64]:
        """RL-KD's rewards 1 to 3 (Yuan et al., 2021), measured after the update on the batch just trained on.

        Before it, reward 1 would not depend on the action. The distillation term is held against the mean of all
        teachers, so that picking teachers cannot lower it.
        """
        hard, soft = (_bounded(loss) for loss in self.process.review())
        if self.config.reward == "batch_ce":
            return -hard
        if self.config.reward == "batch_ce_kd":
            return -hard - soft
        part = BATCH_REWARDS["batch_mixed"]
        return part * (-hard - soft) + (1 - part) * self.accuracy

    @property
    def terminated(self) -> NDArray[np.bool_]:
        """Whose budget is spent, or whose student has failed [N]."""
        spent = (self.process.update >= self.recipe.process.horizon).numpy()
        over: NDArray[np.bool_] = np.logical_or(spent, self.process.failed.numpy())
        return over

    # ------------------------------------------------------------------ what is seen

    @property
    def observation_space(self) -> spaces.Box:
        """Of one student."""
        return self.family.observation_space(self.lab, self.config.observation)

    def observe(self) -> observation.Array:
        """The observations of all students."""
        return self.family.observe(self)

    def values(self) -> dict[str, NDArray[Any]]:
        """The parts of the observation vector, each [N] or [N, size]."""
        recipe = self.recipe.process
        progress = np.minimum(self.process.update.numpy() / recipe.horizon, 1)
        rates = np.array([context.rate for context in self.process.lessons.contexts])
        values: dict[str, NDArray[Any]] = {
            "progress": progress,
            "budget_left": 1 - progress,
            "control": self.control,
            "loss": observation.squash(self.loss),
            "cross_entropy": observation.squash(self.cross_entropy),
            "slope": 10 * self.slope,
            "accuracy": self.accuracy,
            "agreement": self.agreement,
            "teacher_accuracy": self.teacher_accuracy,
            "entropy": self.trace[:, 0] / math.log(self.lab.init.arch.classes),
            "gradient_norm": observation.squash(self.trace[:, 1]),
            "learning_rate": self.process.learning_rate().numpy() / rates / recipe.learning_rate,
        }
        if self.config.observation == "cls":
            coming = self.process.peek()
            for name, side in (("student", coming), ("teacher", coming.teachers[0])):
                values[f"{name}_cls"] = side.cls[:, -1].mean(1).float().cpu().numpy()
        return values

    def info(self, slot: int) -> dict[str, Any]:
        """What is known of an episode, as a function of (id, kwargs, seed, actions)."""
        drop, uniform, batch, penalty = self.terms[slot].tolist()
        entropy, norm = self.trace[slot].tolist()
        agreement, accuracy = self.agreement[slot].tolist(), self.teacher_accuracy[slot].tolist()
        names = self.recipe.teacher_names(self.process.lessons.contexts[slot].teachers)
        return {
            "episode_seed": int(self.seed[slot]),
            "context": self.process.lessons.contexts[slot].name,
            "score_name": f"report {self.lab.data.task.metrics[0]}",
            "updates": int(self.process.update[slot]),
            "control": dict(zip(self.family.labels, self.control[slot].tolist(), strict=True)),
            "losses": dict(zip(self.knowledge, self.loss[slot].tolist(), strict=True)),
            "reward_terms": {
                "cross_entropy_drop": drop,
                "uniform_drop": uniform,
                "batch": batch,
                "accuracy_gain": float(self.gain[slot]),
                "penalty": penalty,
            },
            "reward_split": {
                "cross_entropy": float(self.cross_entropy[slot]),
                "accuracy": float(self.accuracy[slot]),
            },
            "student": {
                "agreement": fmean(agreement),
                "teacher_accuracy": fmean(accuracy),
                "entropy": entropy,
                "gradient_norm": norm if math.isfinite(norm) else -1.0,
            },
            "teachers": [
                {"name": name, "agreement": a, "accuracy": b}
                for name, a, b in zip(names, agreement, accuracy, strict=True)
            ],
            "flops": int(self.process.cost.flops[slot]),
            "empty_selections": int(self.empty[slot]),
            "failure": self.process.reasons[slot],
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


def _bounded(loss: torch.Tensor) -> NDArray[np.float64]:
    """A loss with a ceiling, so that no reward is without bound."""
    bounded: NDArray[np.float64] = np.nan_to_num(loss.double().cpu().numpy(), nan=10.0, posinf=10.0).clip(max=10.0)
    return bounded
