"""AdamW over a stack of students, each with its own learning rate, step count and clip norm."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from kd_gym.backend.encoder import Params

UNDECAYED = ("bias", "norm", "word", "position", "segment")


@dataclass
class AdamWState:
    """First and second moments like the parameters, and each student's step count [N]."""

    mean: Params
    square: Params
    step: Tensor

    @classmethod
    def zeros(cls, p: Params) -> "AdamWState":
        """The state before the first step."""
        first = next(iter(p.values()))
        return cls(
            {k: torch.zeros_like(v) for k, v in p.items()},
            {k: torch.zeros_like(v) for k, v in p.items()},
            torch.zeros(len(first), device=first.device),
        )


def gradient_norms(gradients: Params) -> Tensor:
    """The norm [N] of each student's whole gradient."""
    each = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients.values()])
    total: Tensor = torch.linalg.vector_norm(each, dim=0)
    return total


@torch.no_grad()
def adamw_step(
    p: Params,
    gradients: Params,
    state: AdamWState,
    learning_rate: Tensor,
    norms: Tensor,
    clip: float = 1.0,
    decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """One step of all students in place, with torch's own fused kernel on each student's slice.

    A student whose gradient is not finite (`norms` [N] says) is left as it is. Matrices decay; biases, norms and
    embeddings do not, so rows of the vocabulary that never occur stay as they came.

    The kernel takes one learning rate, so it runs once a student; clipping is its `grad_scale`, which leaves the
    clipped gradients in `gradients`.
    """
    decayed = [k for k in p if not any(part in k for part in UNDECAYED)]
    kept = [k for k in p if k not in decayed]
    for n, (norm, rate) in enumerate(zip(norms.tolist(), learning_rate.tolist(), strict=True)):
        if not math.isfinite(norm):
            continue
        scale = torch.tensor(norm / clip, device=norms.device) if norm > clip else None
        for names, weight_decay in ((decayed, decay), (kept, 0.0)):
            steps = list(state.step[n].repeat(len(names)).unbind())
            adamw(
                [p[k][n] for k in names],
                [gradients[k][n].contiguous() for k in names],  # the kernel takes no notice of strides
                [state.mean[k][n] for k in names],
                [state.square[k][n] for k in names],
                [],
                steps,
                fused=True,
                grad_scale=scale,
                found_inf=None,
                amsgrad=False,
                beta1=betas[0],
                beta2=betas[1],
                lr=rate,
                weight_decay=weight_decay,
                eps=eps,
                maximize=False,
            )
        state.step[n] += 1
