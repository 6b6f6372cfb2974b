"""TeacherWeight: which teacher the student believes, for a while or for every sample."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from kd_gym.backend.terms import Control
from kd_gym.envs import observation
from kd_gym.envs.episodes import Episodes
from kd_gym.envs.faces import DistillationEnv, DistillationVectorEnv
from kd_gym.envs.family import Decision, Family, Granularity, equal_knowledge, normalised, simplex
from kd_gym.envs.lab import Lab
from kd_gym.envs.recipes import LABELS_AND_TEACHERS, Origin, recipe_of
from kd_gym.errors import KDGymError
from kd_gym.plugins import check_choice

ActionKind = Literal["weights", "multi", "choice"]


class TeacherWeight(Family):
    """Weights over M teachers, of a decision or of each of the B samples of the coming batch."""

    def __init__(
        self,
        origin: Origin,
        action: ActionKind = "weights",
        granularity: Granularity = "batch",
    ) -> None:
        super().__init__(recipe_of(origin, LABELS_AND_TEACHERS, several=True))
        check_choice("action kind", action, ActionKind)
        check_choice("granularity", granularity, Granularity)
        if action == "choice" and granularity == "instance":
            raise KDGymError("action='choice' takes one teacher for a whole decision; use weights or multi here")
        self.action = action
        self.granularity = granularity
        self.m = len(self.labels)
        if granularity == "instance":
            self.updates, self.reward_every = 1, self.recipe.updates

    @property
    def labels(self) -> tuple[str, ...]:
        """The teachers, the first one by the name of the default."""
        return self.recipe.teacher_names()

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Box [-1, 1] or MultiBinary, over [M] or [B, M]; or Discrete(M)."""
        if self.action == "choice":
            return spaces.Discrete(self.m)
        shape = (self.m,) if self.granularity == "batch" else (self.recipe.process.batch, self.m)
        if self.action == "weights":
            return spaces.Box(-1.0, 1.0, shape, np.float32)
        return spaces.MultiBinary(shape if len(shape) > 1 else self.m)

    def decide(self, actions: Sequence[Any], episodes: Episodes) -> Decision:
        """Teacher weights [N, M] or [N, B, M] that sum to 1 over teachers.

        A sample for which no teacher is selected learns from the most confident one; an empty selection for a whole
        decision keeps the control before.
        """
        given = np.stack(actions)
        empty: NDArray[np.bool_] = np.zeros(len(given), np.bool_)
        if self.action == "choice":
            weights = np.eye(self.m)[given]
        elif self.action == "weights":
            weights = simplex(given)
        else:
            weights, empty = normalised(given.astype(np.float64))
            if self.granularity == "batch":
                weights = np.where(empty[:, None], episodes.control, weights)
            elif empty.any():
                said = torch.stack([t.logits.softmax(-1).amax(-1) for t in episodes.process.peek().teachers], -1)
                surest = np.eye(self.m)[said.argmax(-1).cpu().numpy()]
                weights = np.where(empty[..., None], surest, weights)
        shown = weights if self.granularity == "batch" else weights.mean(1)
        control = Control(equal_knowledge(len(given), self.recipe), torch.from_numpy(weights))
        return Decision(control, shown, empty.reshape(len(given), -1).sum(1))

    # ------------------------------------------------------------------ what is seen of the coming batch

    def features(self, lab: Lab, kind: str) -> list[observation.Feature]:
        """The parts of the vector, or of a sample's row."""
        if self.granularity == "batch":
            return super().features(lab, kind)
        if kind != "vector":
            raise KDGymError("at instance granularity the observation is always that of the samples")
        classes, bound = lab.init.arch.classes, observation.CLS_BOUND
        names = ", ".join(self.labels)
        return [
            observation.Feature("progress", 1, 0, 1, "updates done / updates of the episode"),
            observation.Feature("cls", lab.teacher.store.width, -bound, bound, "[CLS] state of the first teacher"),
            observation.Feature("teachers", self.m * classes, 0, 1, f"class probabilities of each teacher ({names})"),
            observation.Feature("teacher_loss", self.m, 0, 1, f"cross-entropy of each, x / (1 + x) ({names})"),
            observation.Feature("student", classes, 0, 1, "class probabilities of the student"),
            observation.Feature("student_loss", 1, 0, 1, "cross-entropy of the student, x / (1 + x)"),
        ]

    def observation_space(self, lab: Lab, kind: str) -> spaces.Box:
        """A vector, or a row [F] for each of the B samples of the coming batch."""
        space = super().observation_space(lab, kind)
        if self.granularity == "batch":
            return space
        return observation.rows_space(space, self.recipe.process.batch)

    def observe(self, episodes: Episodes) -> observation.Array:
        """Vectors [N, F], or rows [N, B, F]."""
        if self.granularity == "batch":
            return super().observe(episodes)
        coming = episodes.process.peek()
        log_p = torch.stack([t.logits for t in coming.teachers], 2).log_softmax(-1)  # [N, B, M, C]
        chosen = coming.labels[:, :, None, None].expand(-1, -1, self.m, 1)
        loss = -log_p.gather(-1, chosen).squeeze(-1)
        own = coming.logits.log_softmax(-1)
        hard = -own.gather(-1, coming.labels.unsqueeze(-1)).squeeze(-1)
        done = (episodes.process.update / self.recipe.process.horizon).clamp(max=1)
        values = {
            "progress": done.unsqueeze(1).expand(loss.shape[:2]),
            "cls": coming.teachers[0].cls[:, -1],
            "teachers": log_p.exp().flatten(2),
            "teacher_loss": loss / (1 + loss),
            "student": own.exp(),
            "student_loss": hard / (1 + hard),
        }
        return observation.rows(episodes.features, {k: v.float().cpu().numpy() for k, v in values.items()})


class TeacherWeightEnv(DistillationEnv):
    """Choose which of several teachers the student believes.

    ## Description
    A student learns from labels and from several teachers, half from each. The teachers differ in depth, in how much
    they were taught, in the domain or the labels that they learnt from: some are right on some inputs and wrong on
    others, and in some contexts the default one is replaced by one that was tuned on wrong labels. A controller has to
    find out whom to trust from what teachers, labels and student say of the training samples.

    ## Action space
    | `granularity` | `action` | space | meaning |
    |---|---|---|---|
    | `batch` (default) | `weights` (default) | Box [-1, 1]^M | t = (a + 1) / 2 divided by its sum; all at -1: uniform |
    | `batch` | `multi` | MultiBinary(M) | the selected teachers in equal parts; none: the control before stays |
    | `batch` | `choice` | Discrete(M) | one teacher |
    | `instance` | `weights` | Box [-1, 1]^[B, M] | weights of the teachers for each sample of the coming batch |
    | `instance` | `multi` | MultiBinary([B, M]) | the teachers that each sample learns from; none: the surest one |

    Empty selections are counted in `info["empty_selections"]`. At instance granularity a decision is one update, and
    the batch decided on is the batch trained on.

    ## Observation space
    With `granularity="batch"` a bounded float32 vector (`observation="cls"` adds mean [CLS] states of the batch):

    {observations}

    With `granularity="instance"` a row for each of the B samples of the coming batch: progress, the first teacher's
    [CLS] state, each teacher's class probabilities and its cross-entropy with the (noisy) label as x / (1 + x), and the
    student's class probabilities and cross-entropy.

    ## Reward
    As in `KnowledgeSelect`, measured every `reward_every` decisions (every 10th at instance granularity). Three more
    are measured at every decision on the batch just trained on, after the update (RL-KD, Yuan et al., 2021):
    `batch_ce` is -CE, `batch_ce_kd` is -(CE + KD) with KD held against the mean of all teachers, `batch_mixed` is half
    of that and half the last accuracy on the `reward` split.

    ## Episode start and end
    `reset(seed)` fixes first weights, data order, label noise and context. The episode terminates when the budget of
    updates is spent or the student diverges (`info["failure"]`). It never truncates.

    ## Arguments
    `granularity`, `action`, `teachers`, and those of every env: `observation`, `reward`, `reward_every`, `context`,
    `rows`, `knowledge`, `tau`, `scales`, `student`, `learning_rate`, `horizon`, `precision`, `data`, `device`,
    `backend`, `render_mode` (docs/environments.md).

    ## Version history
    v0: first release.
    """

    Family = TeacherWeight


class TeacherWeightVectorEnv(DistillationVectorEnv):
    """`TeacherWeightEnv` for N students on one device."""

    Family = TeacherWeight
