"""Knowledge types: what can be transferred, each as a loss with one value per sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_gym.backend.encoder import Architecture, Detail, Encoded
from kd_gym.plugins import Registry


class TeacherBatch(NamedTuple):
    """What one teacher says of each student's batch: logits [N, B, C] and the matched [CLS] states [N, L, B, H_t].

    Layer l of `cls` is the teacher's layer that student layer l is matched with. `detail`, with all layers, comes from
    live teachers alone, where a knowledge type reads `tokens`; `late`, the states of the layers before the last one
    [N, L - 1, B, H_t], where one reads it.
    """

    logits: Tensor
    cls: Tensor
    detail: Detail | None = None
    late: Tensor | None = None


def joined(parts: Sequence[TeacherBatch]) -> TeacherBatch:
    """What one teacher says of several groups of students, of all of them together; live ones have one group."""
    if len(parts) == 1:
        return parts[0]
    logits, cls, _, late = zip(*parts, strict=True)
    return TeacherBatch(torch.cat(logits), torch.cat(cls), None, None if late[0] is None else torch.cat(late))


class Batch(NamedTuple):
    """What a knowledge loss may read: the student's and one teacher's word on the batch, and the labels [N, B].

    `heads` are the trained maps of this knowledge type to this teacher, by name, each [N, ...]; `tau` is the
    temperature of soft targets, `progress` [N] the part of the run that is done.
    """

    student: Encoded
    teacher: TeacherBatch
    labels: Tensor
    heads: dict[str, Tensor]
    tau: float
    progress: Tensor


def matched_layers(student: int, teacher: int) -> list[int]:
    """The teacher's layers, from 0, that the student's are matched with: at the same relative depth."""
    return [(i + 1) * teacher // student - 1 for i in range(student)]


@dataclass(frozen=True)
class KnowledgeType:
    """One way to transfer.

    `loss` maps a `Batch` to one value for each sample, [N, B]; `reads` names the teacher fields that it needs
    (`logits`, `cls`, `late`, and `tokens`, which live teachers alone can give); `heads` gives the shapes of its
    trained maps from the student's shape and the teacher's width.
    """

    name: str
    summary: str
    reads: frozenset[str]
    loss: Callable[[Batch], Tensor]
    heads: Callable[[Architecture, int], dict[str, tuple[int, ...]]] = lambda arch, width: {}


def hard_loss(batch: Batch) -> Tensor:
    """Cross-entropy with the labels."""
    n, b, c = batch.student.logits.shape
    return F.cross_entropy(batch.student.logits.view(n * b, c), batch.labels.reshape(-1), reduction="none").view(n, b)


def response_loss(batch: Batch) -> Tensor:
    """tau^2 KL(p_T || p_S) of softened distributions (Hinton et al., 2015, with the tau^2 factor)."""
    student = (batch.student.logits / batch.tau).log_softmax(-1)
    teacher = (batch.teacher.logits / batch.tau).log_softmax(-1)
    return batch.tau**2 * (teacher.exp() * (teacher - student)).sum(-1)


def feature_loss(batch: Batch) -> Tensor:
    """MSE of L2-normalised [CLS] states, the student's through a linear map, averaged over layers (PKD, Sun 2019)."""
    mapped = F.normalize(torch.matmul(batch.student.cls, batch.heads["map"]), dim=-1)
    return (mapped - F.normalize(batch.teacher.cls, dim=-1)).square().sum(-1).mean(1)


def relation_loss(batch: Batch) -> Tensor:
    """MSE between a sample's rows of the student's and the teacher's cosine-similarity matrices of the batch.

    Both are taken over last-layer [CLS] states (similarity-preserving distillation, Tung and Mori 2019).
    """
    student, teacher = (F.normalize(side.cls[:, -1], dim=-1) for side in (batch.student, batch.teacher))
    return (student @ student.mT - teacher @ teacher.mT).square().mean(-1)


KNOWLEDGE = Registry(
    "knowledge",
    {
        k.name: k
        for k in (
            KnowledgeType("hard", "cross-entropy with the labels", frozenset(), hard_loss),
            KnowledgeType("response", "soft targets of the teacher", frozenset({"logits"}), response_loss),
            KnowledgeType(
                "feature",
                "[CLS] states of matched layers through a linear map",
                frozenset({"cls"}),
                feature_loss,
                lambda arch, width: {"map": (arch.layers, arch.hidden, width)},
            ),
            KnowledgeType("relation", "similarities within the batch", frozenset({"cls"}), relation_loss),
        )
    }
    | {
        name: f"kd_gym.backend.{module}_knowledge:{name.replace('-', '_')}"
        for module, names in {
            "classic": ("soft-mse", "annealed", "spherical", "correlation", "geometry", "cls-skip", "cls-last"),
            "token": ("attention", "hidden", "fsp", "self-relation"),
        }.items()
        for name in names
    },
)
