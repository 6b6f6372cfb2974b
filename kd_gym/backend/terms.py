"""The words that a distillation process is spoken to in: recipe, control, and what it answers."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_gym.backend.encoder import Attention, Encoded, Precision
from kd_gym.backend.knowledge import TeacherBatch, joined
from kd_gym.backend.sampling import Selection


@dataclass(frozen=True)
class Recipe:
    """How students are trained, whatever the control: a part of what an id means.

    Attributes:
        knowledge: the names of the knowledge types, in the order of the control.
        horizon: updates of one episode; the learning rate warms up over a tenth of it and falls to 0 at its end.
        scale_batches: how many batches after reset measure the losses' scales.
        precision: what students' layers compute in while they learn; parameters, losses, the optimiser and all
            evaluations are in float32.
    """

    knowledge: tuple[str, ...] = ("hard", "response", "feature", "relation")
    horizon: int = 150
    batch: int = 64
    learning_rate: float = 1e-3
    tau: float = 4.0
    decay: float = 0.01
    clip: float = 1.0
    scale_batches: int = 4
    data_key: int = 0
    attention: Attention = "fused"
    precision: Precision = "float32"


PARTS = ("student", "evaluation", "teacher", "controller")  # where time goes


class Control(NamedTuple):
    """What one decision sets, each student's own: knowledge weights [N, K], which sum to 1; teacher weights [N, M] or
    [N, B, M], which sum to 1 over teachers; sample weights [N, B], of mean 1. None is uniform. A selection chooses
    the rows of a batch out of a pool.
    """

    knowledge: Tensor
    teachers: Tensor | None = None
    samples: Tensor | None = None
    selection: Selection | None = None


class Forward(NamedTuple):
    """One forward pass of n students: every knowledge loss of every sample from every teacher [n, K, M, B], what it was
    made of, the labels as the students see them [n, B], the word pieces [n, B, T], and each student's own FLOPs [n].
    """

    losses: Tensor
    encoded: Encoded
    teachers: list[TeacherBatch]
    labels: Tensor
    ids: Tensor
    flops: NDArray[np.int64]


class Seen(NamedTuple):
    """What students and teachers make of a batch, without gradients: the students' logits [N, B, C] and [CLS] states of
    every layer [N, L, B, H], each teacher's word, and the labels as the students see them [N, B].
    """

    logits: Tensor
    cls: Tensor
    teachers: list[TeacherBatch]
    labels: Tensor

    @classmethod
    def of(cls, passes: Sequence[Forward]) -> "Seen":
        """The passes of all parts of a stack, one after the other."""
        teachers = [joined(each) for each in zip(*(one.teachers for one in passes), strict=True)]
        encoded = [one.encoded for one in passes]
        return cls(
            torch.cat([one.logits.detach() for one in encoded]),
            torch.cat([one.cls.detach() for one in encoded]),
            teachers,
            torch.cat([one.labels for one in passes]),
        )


class Trace(NamedTuple):
    """Means over the updates of one `advance`: losses [N, K] before weights and scales; norm and entropy of the
    student [N]; the share of samples on which a teacher agrees with the student, and with the labels [N, M].
    """

    losses: Tensor
    gradient_norm: Tensor
    entropy: Tensor
    agreement: Tensor
    teacher_accuracy: Tensor


class Evaluation(NamedTuple):
    """What students make of a fixed set of rows: cross-entropy and accuracy [N], predicted classes [N, rows]."""

    cross_entropy: Tensor
    accuracy: Tensor
    predictions: Tensor


@dataclass
class Cost:
    """What was spent: FLOPs of each student since its reset [N], and seconds of all together since the start, by part.

    FLOPs are counted at a student's own padded widths, so that they do not depend on its neighbours.
    """

    student: NDArray[np.int64]
    evaluation: NDArray[np.int64]
    teacher: NDArray[np.int64]
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @classmethod
    def zeros(cls, students: int) -> "Cost":
        """Nothing spent."""
        return cls(*(np.zeros(students, np.int64) for _ in range(3)))  # type: ignore[arg-type]

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count what is done inside as this part's seconds, but for those that other parts count meanwhile."""
        begin, counted = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            others = sum(self.seconds.values()) - counted
            self.seconds[part] += time.perf_counter() - begin - others

    @property
    def parts(self) -> tuple[NDArray[np.int64], ...]:
        """The FLOPs of each part."""
        return self.student, self.evaluation, self.teacher

    @property
    def flops(self) -> NDArray[np.int64]:
        """All parts together."""
        return sum(self.parts, np.zeros_like(self.student))
