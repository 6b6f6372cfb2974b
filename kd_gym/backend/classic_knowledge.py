"""Losses of the classical baselines on logits and [CLS] states; each gives one value for each sample [N, B]."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_gym.backend.encoder import Architecture
from kd_gym.backend.knowledge import Batch, KnowledgeType
from kd_gym.errors import KDGymError


def soft_mse_loss(batch: Batch) -> Tensor:
    """tau^2 times the mean squared distance of softened probabilities (MetaDistil, Zhou et al. 2022, released code)."""
    student, teacher = ((side.logits / batch.tau).softmax(-1) for side in (batch.student, batch.teacher))
    return batch.tau**2 * (student - teacher).square().mean(-1)


def annealed_loss(batch: Batch) -> Tensor:
    """Squared distance to the teacher's logits times an annealing factor, which rises to 1 in ten steps over the first
    half of the run (Annealing-KD, Jafari et al. 2021: its first phase).
    """
    factor = ((20 * batch.progress).floor().clamp(max=9) + 1) / 10
    target = factor.to(batch.student.logits)[:, None, None] * batch.teacher.logits
    return (batch.student.logits - target).square().mean(-1)


def spherical_loss(batch: Batch) -> Tensor:
    """tau^2 KL of logits that are brought to the mean norm of the teacher's (SKD, Guo et al. 2020, recalled).

    Not centred: centred logits of two classes differ in sign alone, which has no gradient.
    """
    size = batch.teacher.logits.norm(dim=-1, keepdim=True).mean(1, keepdim=True)
    student, teacher = (
        (F.normalize(side.logits, dim=-1) * size / batch.tau).log_softmax(-1) for side in (batch.student, batch.teacher)
    )
    loss: Tensor = batch.tau**2 * (teacher.exp() * (teacher - student)).sum(-1)
    return loss


def _correlation(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along a dimension."""
    x, y = (z - z.mean(dim, keepdim=True) for z in (x, y))
    found: Tensor = F.cosine_similarity(x, y, dim=dim, eps=1e-6)
    return found


def correlation_loss(batch: Batch) -> Tensor:
    """tau^2 (1 - correlation over classes + 1 - correlation over the batch) of softened probabilities (DIST, Huang et
    al. 2022). Of two classes only the second part has a gradient.
    """
    student, teacher = ((side.logits / batch.tau).softmax(-1) for side in (batch.student, batch.teacher))
    between = 1 - _correlation(student, teacher, -1)
    within = (1 - _correlation(student, teacher, 1)).mean(-1, keepdim=True)
    return batch.tau**2 * (between + within)


def _distances(cls: Tensor) -> Tensor:
    """Euclidean distances within a batch [N, B, H] -> [N, B, B], divided by the mean of those between two samples."""
    apart = (cls.unsqueeze(2) - cls.unsqueeze(1)).square().sum(-1).clamp_min(1e-12).sqrt()
    count = cls.shape[1] * (cls.shape[1] - 1)
    return apart / (apart.sum((1, 2), keepdim=True) / count)


def _angles(cls: Tensor) -> Tensor:
    """Cosines of the angles that samples j and k are seen under from i: [N, B, H] -> [N, i, j, k]."""
    rays = F.normalize(cls.unsqueeze(1) - cls.unsqueeze(2), dim=-1)
    return rays @ rays.mT


def geometry_loss(batch: Batch) -> Tensor:
    """Huber loss of distances plus twice that of angles, on last-layer [CLS] states (RKD, Park et al. 2019)."""
    student, teacher = (side.cls[:, -1] for side in (batch.student, batch.teacher))
    distance = F.smooth_l1_loss(_distances(student), _distances(teacher), reduction="none").mean(-1)
    angle = F.smooth_l1_loss(_angles(student), _angles(teacher), reduction="none").mean((-1, -2))
    return distance + 2 * angle


def _patient(batch: Batch, teacher: Tensor) -> Tensor:
    mapped = F.normalize(torch.matmul(batch.student.cls[:, :-1], batch.heads["map"]), dim=-1)
    return (mapped - F.normalize(teacher, dim=-1)).square().mean((1, 3))


def cls_skip_loss(batch: Batch) -> Tensor:
    """[CLS] states of all layers but the last, matched with evenly spaced layers (PKD-Skip, Sun et al. 2019)."""
    return _patient(batch, batch.teacher.cls[:, :-1])


def cls_last_loss(batch: Batch) -> Tensor:
    """The same, matched with the layers before the teacher's last one (PKD-Last, Sun et al. 2019)."""
    assert batch.teacher.late is not None
    return _patient(batch, batch.teacher.late)


def _map(arch: Architecture, width: int) -> dict[str, tuple[int, ...]]:
    if arch.layers < 2:
        raise KDGymError("knowledge in layers before the last one needs a student of two layers or more")
    return {"map": (arch.layers - 1, arch.hidden, width)}


LOGITS, STATES = frozenset({"logits"}), frozenset({"cls"})
soft_mse = KnowledgeType("soft-mse", "distance of softened probabilities (MetaDistil)", LOGITS, soft_mse_loss)
annealed = KnowledgeType("annealed", "distance to annealed logits (Annealing-KD)", LOGITS, annealed_loss)
spherical = KnowledgeType("spherical", "soft targets of normalised logits (SKD)", LOGITS, spherical_loss)
correlation = KnowledgeType("correlation", "correlation of classes and of samples (DIST)", LOGITS, correlation_loss)
geometry = KnowledgeType("geometry", "distances and angles within the batch (RKD)", STATES, geometry_loss)
cls_skip = KnowledgeType("cls-skip", "[CLS] states of spaced layers (PKD-Skip)", STATES, cls_skip_loss, _map)
cls_last = KnowledgeType("cls-last", "[CLS] states of late layers (PKD-Last)", frozenset({"late"}), cls_last_loss, _map)
