"""Closed-form choices of teachers: what a learned selector has to beat.

`best-single` and `weighted-ensemble` are fixed controls that read the labels of the `reward` split once; `ca-mkd` and
`govern` decide for every sample from what teachers and student say of it.
"""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F

from kd_gym.agents.protocol import Array, Controller
from kd_gym.errors import KDGymError


class _Ensemble(Controller):
    """A fixed control over teachers, fitted on what those of the default set say of the `reward` split.

    Where a context puts another teacher in the first one's place, it is believed as much: no controller is told.
    """

    actions = ("weights",)
    fits = ("TeacherWeight",)
    fixed = True
    reads_reward = True

    def __init__(self, env: gym.Env[Any, Any], *, seed: int = 0, config: Any = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        lab = env.unwrapped.lab  # type: ignore[attr-defined]
        said = torch.stack([teacher.over("reward").logits for teacher in lab.teachers()])
        weights = self._fit(said.float().log_softmax(-1), lab.data.split("reward").labels.cpu())
        action = (2 * weights / weights.max() - 1).numpy().astype(np.float32)
        self._fixed = np.broadcast_to(action, self.action_space.shape or ())

    def _fit(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Weights [M] from log-probabilities [M, rows, C] and labels [rows]."""
        raise NotImplementedError

    def act(self, observation: Array) -> Array:
        """The same for every observation."""
        return self._fixed


class BestSingle(_Ensemble):
    """The teacher that is most often right on the `reward` split, alone."""

    def _fit(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        right = (log_p.argmax(-1) == labels).double().mean(1)
        return F.one_hot(right.argmax(), len(right)).double()


class WeightedEnsemble(_Ensemble):
    """Fixed weights from a logistic regression: those under which sum_m w_m log p_m explains the `reward` labels best.

    The LR-Ensemble of RL-KD's comparison (Yuan et al., 2021).
    """

    def _fit(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raw = torch.zeros(len(log_p), dtype=torch.double, requires_grad=True)
        optimiser = torch.optim.LBFGS([raw], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            mixed = (F.softplus(raw)[:, None, None] * log_p.double()).sum(0)
            value = F.cross_entropy(mixed, labels) + 1e-4 * raw.square().sum()
            value.backward()
            return value

        optimiser.step(loss)
        return F.softplus(raw.detach())


class CAMKD(Controller):
    """Confidence-aware weights, t_m = (1 - softmax_m(CE_m)) / (M - 1) for each sample (Zhang et al., ICASSP 2022).

    Of the paper's loss this is the weighting of soft targets; its second weighting, of features, is not in this family.
    """

    actions = ("weights",)
    fits = ("TeacherWeight",)
    options: ClassVar = {"granularity": "instance"}

    def act(self, observation: Array) -> Array:
        """Weights [B, M] from the teachers' cross-entropies."""
        squashed = self.see(observation, "teacher_loss").astype(np.float64)
        loss = squashed / np.maximum(1 - squashed, 1e-6)
        if loss.shape[1] < 2:
            raise KDGymError("ca-mkd weighs several teachers; this env has one")
        soft = np.exp(loss - loss.max(1, keepdims=True))
        weights = (1 - soft / soft.sum(1, keepdims=True)) / (loss.shape[1] - 1)
        return np.asarray(2 * weights / weights.max(1, keepdims=True) - 1, np.float32)


class Govern(Controller):
    """A vote on the direction of the gradient, for each sample (GOVERN; Zhou et al., EMNLP 2024 Industry).

    Each teacher votes whether the student's probability of the class that the teachers together hold most likely
    should rise or fall; the majority's teachers are averaged, the minority is left out. No labels are read.
    """

    actions = ("multi",)
    fits = ("TeacherWeight",)
    options: ClassVar = {"granularity": "instance"}

    def act(self, observation: Array) -> Array:
        """Selected teachers [B, M]."""
        student = self.see(observation, "student")
        teachers = self.see(observation, "teachers").reshape(len(student), -1, student.shape[1])
        chosen = teachers.mean(1).argmax(1)
        rows = np.arange(len(student))
        rise = teachers[rows, :, chosen] > student[rows, chosen][:, None]
        share = rise.mean(1, keepdims=True)
        return np.where(share == 0.5, 1, rise == (share > 0.5)).astype(np.int8)
