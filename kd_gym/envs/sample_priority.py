"""SamplePriority: which samples the student learns from, by difficulty or one by one."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces

from kd_gym.backend.sampling import MEASURES, Select, Selection, difficulties
from kd_gym.backend.terms import Control
from kd_gym.envs import observation
from kd_gym.envs.episodes import Episodes
from kd_gym.envs.faces import DistillationEnv, DistillationVectorEnv
from kd_gym.envs.family import Decision, Family, Granularity, Weights, equal_knowledge, unit
from kd_gym.envs.lab import Lab
from kd_gym.envs.recipes import LABELS_AND_TEACHERS, Origin, recipe_of
from kd_gym.errors import KDGymError
from kd_gym.plugins import check_choice

ActionKind = Literal["weights"]
QUANTILES = 4
POOL = 2  # batches in a pool


def quantile_labels() -> tuple[str, ...]:
    """The names of the weights: each measure's quantiles from easy to hard."""
    return tuple(f"{measure}_{q + 1}" for measure in MEASURES for q in range(QUANTILES))


def quantile_weights(actions: Any) -> torch.Tensor:
    """Weights [N, D, Q] in [0, 1] out of boxes [-1, 1]^(D Q); where all of a measure are 0, it counts as uniform."""
    weights = unit(np.stack(actions)).reshape(len(actions), len(MEASURES), QUANTILES)
    return torch.from_numpy(np.where(weights.any(-1, keepdims=True), weights, 1.0))


class SamplePriority(Family):
    """Sampling weights of difficulty quantiles, or a score for each candidate of a pool."""

    selects = True

    def __init__(
        self,
        origin: Origin,
        action: ActionKind = "weights",
        granularity: Granularity = "batch",
        select: Select = "sample",
        pool: int | None = None,
        correct: bool = False,
    ) -> None:
        super().__init__(recipe_of(origin, LABELS_AND_TEACHERS))
        check_choice("action kind", action, ActionKind)
        check_choice("granularity", granularity, Granularity)
        check_choice("way to select", select, Select)
        batch = self.recipe.process.batch
        if pool is not None and (not isinstance(pool, int) or pool < batch):
            raise KDGymError(f"a pool of {pool} candidates is smaller than the batch of {batch}; take at least {batch}")
        if granularity == "batch" and select != "sample":
            raise KDGymError(f"select={select!r} scores single candidates; it needs granularity='instance'")
        if correct and select != "sample":
            raise KDGymError(f"correct=True weighs rows by how likely they were drawn; select={select!r} draws none")
        if select == "weight" and pool not in (None, batch):
            raise KDGymError(f"select='weight' trains on every candidate: its pool is the batch of {batch}")
        self.action = action
        self.granularity = granularity
        self.select = select
        self.correct = correct
        self.pool = pool or (batch if select == "weight" else POOL * batch)
        if granularity == "instance":
            self.updates, self.reward_every = 1, self.recipe.updates

    @property
    def labels(self) -> tuple[str, ...]:
        """The quantiles' names; at instance granularity mean and spread of the scores."""
        return quantile_labels() if self.granularity == "batch" else ("score_mean", "score_spread")

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Box [-1, 1], of D * Q quantiles or of P candidates."""
        return spaces.Box(-1.0, 1.0, (len(self.labels) if self.granularity == "batch" else self.pool,), np.float32)

    def decide(self, actions: Sequence[Any], episodes: Episodes) -> Decision:
        """The scores [N, D, Q] or [N, P] by which the coming batches are chosen."""
        if self.granularity == "batch":
            scores = quantile_weights(actions)
            shown = scores.flatten(1).numpy()
        else:
            scores = torch.from_numpy(unit(np.stack(actions)))
            shown = torch.stack([scores.mean(1), scores.std(1)], 1).numpy()
        return Decision(self._control(scores), shown, np.zeros(len(scores), np.int64))

    def uniform(self, count: int) -> Control:
        """A plain draw out of the same pools."""
        return self._control(torch.ones(count, self.pool))

    def _control(self, scores: torch.Tensor) -> Control:
        selection = Selection(scores, self.pool, self.select, self.correct)
        return Control(equal_knowledge(len(scores), self.recipe), selection=selection)

    def initial(self) -> Weights:
        """Equal weights; equal scores have no spread."""
        return np.full(len(self.labels), 0.5) if self.granularity == "batch" else np.array([0.5, 0.0])

    # ------------------------------------------------------------------ what is seen of the pool

    def features(self, lab: Lab, kind: str) -> list[observation.Feature]:
        """The parts of the vector, or of a candidate's row."""
        if self.granularity == "batch":
            return super().features(lab, kind)
        if kind != "vector":
            raise KDGymError("at instance granularity the observation is always that of the candidates")
        feature = observation.Feature
        return [
            feature("progress", 1, 0, 1, "updates done / updates of the episode"),
            feature("teacher_entropy", 1, 0, 1, "entropy of the teacher / log(classes)"),
            feature("student_loss", 1, 0, 1, "cross-entropy of the student with the label, x / (1 + x)"),
            feature("disagreement", 1, 0, 1, "total variation between teacher and student"),
            feature("teacher_loss", 1, 0, 1, "cross-entropy of the teacher with the label, x / (1 + x)"),
            feature("student_entropy", 1, 0, 1, "entropy of the student / log(classes)"),
            feature("student_margin", 1, 0, 1, "difference of the student's two highest probabilities"),
            feature("agreement", 1, 0, 1, "whether the teacher's class is the label's"),
        ]

    def observation_space(self, lab: Lab, kind: str) -> spaces.Box:
        """A vector, or a row [F] for each of the P candidates."""
        space = super().observation_space(lab, kind)
        return space if self.granularity == "batch" else observation.rows_space(space, self.pool)

    def observe(self, episodes: Episodes) -> observation.Array:
        """Vectors [N, F], or rows [N, P, F]."""
        if self.granularity == "batch":
            return super().observe(episodes)
        seen = episodes.process.peek(self.pool)
        teacher, student = seen.teachers[0].logits.log_softmax(-1), seen.logits.log_softmax(-1)
        entropy, loss, apart = difficulties(seen.logits, seen.teachers[0], seen.labels).unbind(1)
        teacher_loss = -teacher.gather(-1, seen.labels.unsqueeze(-1)).squeeze(-1)
        top = student.exp().topk(2).values
        most = float(np.log(student.shape[-1]))
        done = (episodes.process.update / self.recipe.process.horizon).clamp(max=1).to(entropy)
        values = {
            "progress": done.unsqueeze(1).expand_as(entropy),
            "teacher_entropy": entropy / most,
            "student_loss": loss / (1 + loss),
            "disagreement": apart,
            "teacher_loss": teacher_loss / (1 + teacher_loss),
            "student_entropy": -(student.exp() * student).sum(-1) / most,
            "student_margin": top[..., 0] - top[..., 1],
            "agreement": (teacher.argmax(-1) == seen.labels).float(),
        }
        return observation.rows(episodes.features, {k: v.float().cpu().numpy() for k, v in values.items()})


class SamplePriorityEnv(DistillationEnv):
    """Choose which samples the student learns from.

    ## Description
    A student is distilled from one teacher and the labels, half from each. The controller decides which samples it is
    trained on: easy or hard ones, those on which it differs from its teacher, or single ones. Where labels are noisy,
    the hardest samples are the wrong ones; where they are clean, they teach most.

    ## Action space
    | `granularity` | space | meaning |
    |---|---|---|
    | `batch` (default) | Box [-1, 1]^(3 x 4) | weights (a + 1) / 2 of the quarters of a pool under three measures |
    | `instance` | Box [-1, 1]^P | scores (a + 1) / 2 of the P candidates of the coming batch of B |

    With `granularity="batch"`, every update draws a pool of P candidates, ranks it by the entropy of the teacher, the
    student's loss with the label, and the disagreement of both, as the student is at that update, and draws the batch
    without replacement in proportion to the product of the three weights. That is one more forward pass over the pool,
    and counted. A measure whose weights are all at -1 counts as uniform.

    With `granularity="instance"` a decision is one update. `select="sample"` (default) draws B of the P candidates in
    proportion to their scores, `"top"` takes the B highest, `"weight"` trains on all (P = B), weighted in proportion.
    Where a context leaves less data than a pool takes, the pool holds rows twice.

    Choosing samples changes what the loss is an estimate of. `correct=True` weighs each drawn sample by 1 / (P p), the
    importance weights of prioritised replay (Schaul et al., 2016, beta = 1): the choice then changes the variance of
    the gradient and, up to the draw being without replacement, not its mean. By default nothing is corrected, so that
    a controller can leave samples out.

    ## Observation space
    With `granularity="batch"` a bounded float32 vector:

    {observations}

    With `granularity="instance"` a row of 8 numbers in [0, 1] for each candidate: progress, the teacher's entropy, the
    student's loss, their disagreement, the teacher's loss, the student's entropy and margin, and whether the teacher's
    class is the label's.

    ## Reward
    As in `KnowledgeSelect`, measured every `reward_every` decisions (every 10th at instance granularity).

    ## Episode start and end
    `reset(seed)` fixes first weights, data order, label noise and context. The episode terminates when the budget of
    updates is spent or the student diverges (`info["failure"]`). It never truncates.

    ## Arguments
    `granularity`, `select`, `pool` (P; twice the batch by default), `correct`, `teachers`, `teacher`, and those of
    every env: `observation`, `reward`, `reward_every`, `context`, `rows`, `knowledge`, `tau`, `scales`,
    `student`, `learning_rate`, `horizon`, `precision`, `data`, `device`, `backend`, `render_mode`
    (docs/environments.md).

    ## Version history
    v0: first release.
    """

    Family = SamplePriority


class SamplePriorityVectorEnv(DistillationVectorEnv):
    """`SamplePriorityEnv` for N students on one device."""

    Family = SamplePriority
