"""Knowledge in the states of all tokens: too large to store, so it comes from a live teacher.

Student and teacher must see the same word pieces. Places without a token count nowhere.
"""

import torch
from torch import Tensor

from kd_gym.backend.encoder import Architecture, Detail
from kd_gym.backend.knowledge import Batch, KnowledgeType, matched_layers
from kd_gym.errors import KDGymError


def _details(batch: Batch) -> tuple[Detail, Detail, Tensor]:
    """Both sides, the teacher's with just the layers that the student's are matched with, and the mask [N, B, T]."""
    student, teacher = batch.student.detail, batch.teacher.detail
    assert student is not None
    assert teacher is not None
    layers = matched_layers(student.hidden.shape[1], teacher.hidden.shape[1])
    return (
        student,
        teacher._replace(hidden=teacher.hidden[:, layers], attention=teacher.attention[:, layers]),
        student.mask,
    )


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of [N, ..., B, T] over tokens [N, B, T] and all dimensions between the first and B -> [N, B]."""
    while mask.dim() < values.dim():
        mask = mask.unsqueeze(1)
    total = (values * mask).sum(-1) / mask.sum(-1).clamp_min(1)
    return total.flatten(1, -2).mean(1) if total.dim() > 2 else total


def attention_loss(batch: Batch) -> Tensor:
    """Squared distance of attention maps, averaged over heads, of matched layers (TinyBERT, Jiao et al. 2020, which
    takes them before the softmax and head by head; here the numbers of heads differ).
    """
    student, teacher, mask = _details(batch)
    ours, theirs = (side.attention.mean(3) for side in (student, teacher))  # [N, L, B, T, T]
    return _mean((ours - theirs).square().sum(-1), mask)


def hidden_loss(batch: Batch) -> Tensor:
    """Mean squared distance of all tokens' states through a linear map, of matched layers (TinyBERT)."""
    student, teacher, mask = _details(batch)
    mapped = torch.matmul(student.hidden, batch.heads["map"].unsqueeze(2))
    return _mean((mapped - teacher.hidden).square().mean(-1), mask)


def fsp_loss(batch: Batch) -> Tensor:
    """Mean squared distance of FSP matrices G = H_a^T H_b / tokens between the first and the last matched layer, the
    student's through a linear map (Yim et al. 2017; `relation` knowledge of AKS, Wang et al. 2022).
    """
    student, teacher, mask = _details(batch)
    ends = [0, -1]
    mapped = torch.matmul(student.hidden[:, ends], batch.heads["map"].unsqueeze(2))
    count = mask.sum(-1).clamp_min(1)[:, :, None, None]
    ours, theirs = (
        (x[:, 0] * mask.unsqueeze(-1)).mT @ x[:, 1] / count for x in (mapped, teacher.hidden[:, ends])
    )  # [N, B, H_t, H_t]
    return (ours - theirs).square().mean((-1, -2))


def _relations(side: Detail, heads: int) -> Tensor:
    """log softmax of the scaled products of queries, keys and values each with itself: [N, 3, B, A, T, T]."""
    n, three, b, t, h = side.last.shape
    parts = side.last.view(n, three, b, t, heads, h // heads).transpose(3, 4)
    scores = parts @ parts.mT * (h // heads) ** -0.5
    found: Tensor = scores.masked_fill(~side.mask[:, None, :, None, None], -1e9).log_softmax(-1)
    return found


def self_relation_loss(batch: Batch) -> Tensor:
    """KL of the last layer's query, key and value relations, under the student's number of heads (MiniLMv2, Wang et
    al. 2021).
    """
    student, teacher, mask = _details(batch)
    ours, theirs = (_relations(side, student.heads) for side in (student, teacher))
    apart = (theirs.exp() * (theirs - ours)).sum(-1)  # [N, 3, B, A, T]
    return _mean(apart.transpose(2, 3).flatten(1, 2), mask)


def _map(arch: Architecture, width: int) -> dict[str, tuple[int, ...]]:
    return {"map": (arch.layers, arch.hidden, width)}


def _ends(arch: Architecture, width: int) -> dict[str, tuple[int, ...]]:
    return {"map": (2, arch.hidden, width)}


def _alike(arch: Architecture, width: int) -> dict[str, tuple[int, ...]]:
    if width % arch.heads:
        raise KDGymError(f"self-relation splits the teacher's width of {width} by the student's {arch.heads} heads")
    return {}


TOKENS = frozenset({"tokens"})
attention = KnowledgeType("attention", "attention maps of matched layers (TinyBERT)", TOKENS, attention_loss)
hidden = KnowledgeType("hidden", "states of all tokens of matched layers (TinyBERT)", TOKENS, hidden_loss, _map)
fsp = KnowledgeType("fsp", "FSP matrices between two layers (AKS)", TOKENS, fsp_loss, _ends)
self_relation = KnowledgeType("self-relation", "relations among tokens (MiniLMv2)", TOKENS, self_relation_loss, _alike)
