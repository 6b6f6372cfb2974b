"""Which rows of a pool of candidates are trained on, and how much each counts."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_gym.backend.knowledge import TeacherBatch

Select = Literal["top", "sample", "weight"]
MEASURES = ("teacher_entropy", "student_loss", "disagreement")
_LEAST = 1e-9  # stands for a score of 0 in logarithms and quotients
_STREAM = 11  # of a student's seed: which candidates are drawn


class Selection(NamedTuple):
    """How rows are chosen out of a pool of P candidates for each batch of B.

    `scores` are non-negative: [N, P], of the candidates of the one coming update; or [N, D, Q], of the Q quantiles of
    the pool under each of the D `MEASURES`: a candidate's score is then the product of its quantiles' ones.

    `how`: `top` takes the B highest; `sample` draws B without replacement, in proportion; `weight` trains on the first
    B of the pool, weighted in proportion. Where all scores are 0, they count as equal.

    With `correct`, rows that were drawn weigh 1 / (P p), normalised to mean 1: the importance weights of prioritised
    replay (Schaul et al., 2016, with beta = 1), which undo the bias of the draw up to its lack of replacement. Rows of
    score 0 that only fill the batch weigh nothing.
    """

    scores: Tensor
    pool: int
    how: Select = "sample"
    correct: bool = False


def difficulties(student: Tensor, teacher: TeacherBatch, labels: Tensor) -> Tensor:
    """The `MEASURES` of candidates [N, D, P] from student logits [N, P, C], the first teacher and labels [N, P].

    Entropy of the teacher, cross-entropy of the student with the label, total variation between both.
    """
    said = teacher.logits.softmax(-1)
    entropy = -(said * said.clamp_min(1e-9).log()).sum(-1)
    loss = F.cross_entropy(student.flatten(0, 1), labels.flatten(), reduction="none").view_as(entropy)
    apart = (said - student.softmax(-1)).abs().sum(-1) / 2
    return torch.stack([entropy, loss, apart], 1)


def quantile_scores(measures: Tensor, weights: Tensor) -> Tensor:
    """Scores [N, P] of candidates: the product over measures [N, D, P] of the weights [N, D, Q] of their quantiles."""
    size, quantiles = measures.shape[-1], weights.shape[-1]
    rank = measures.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    return weights.to(measures).gather(-1, rank * quantiles // size).prod(1)


def choose(selection: Selection, scores: Tensor, batch: int, keys: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The places [N, B] in the pool that are trained on, and their sample weights [N, B] of mean 1.

    Args:
        selection: how to choose.
        scores: of the candidates [N, P].
        batch: B.
        keys: of each student, what its draw is a function of.
    """
    scores = scores.double()
    if selection.how == "weight":
        places = torch.arange(batch, device=scores.device).expand(len(scores), -1)
        weights = scores[:, :batch]
        weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, 1.0)
        return places, weights / weights.mean(-1, keepdim=True)
    drawn = np.stack([np.random.default_rng([*key, _STREAM]).gumbel(size=scores.shape[-1]) for key in keys])
    noise = torch.from_numpy(drawn).to(scores.device)
    if selection.how == "top":  # candidates of equal score in the order of the noise
        order = noise.argsort(-1)
        places = order.gather(-1, (-scores.gather(-1, order)).argsort(dim=-1, stable=True))[:, :batch]
    else:  # Gumbel top-k (Kool et al., 2019); candidates of score 0 come last
        places = (scores.clamp_min(_LEAST).log() + noise).topk(batch).indices
    if selection.correct and selection.how == "sample":
        drawn_scores = scores.gather(-1, places)
        weights = torch.where(drawn_scores > 0, 1 / drawn_scores.clamp_min(_LEAST), 0.0)
        weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, 1.0)
        return places, weights / weights.mean(-1, keepdim=True)
    return places, torch.ones_like(scores[:, :batch])
