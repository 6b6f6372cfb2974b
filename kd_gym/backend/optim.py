"""AdamW over a stack of students, each with its own learning rate, step count and clip norm."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from kd_gym.backend.encoder import Params

BETAS, EPS = (0.9, 0.999), 1e-8
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

    def seen(self, look: Callable[[Params], Params]) -> "AdamWState":
        """The same state through views of its moments."""
        return AdamWState(look(self.mean), look(self.square), self.step)


def gradient_norms(gradients: Params) -> Tensor:
    """The norm [N] of each student's whole gradient."""
    each = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients.values()])
    total: Tensor = torch.linalg.vector_norm(each, dim=0)
    return total


def decays(name: str) -> bool:
    """Whether a parameter of this name is pulled towards zero."""
    return not any(part in name for part in UNDECAYED)


@torch.no_grad()
def adamw_step(
    p: Params,
    gradients: Params,
    state: AdamWState,
    learning_rate: Tensor,
    norms: Tensor,
    clip: float = 1.0,
    decay: float = 0.01,
) -> None:
    """One step of all students in place.

    A student whose gradient is not finite (`norms` [N] says) is left as it is. Matrices decay; biases, norms and
    embeddings do not, so rows of the vocabulary that never occur stay as they came. `gradients` are clipped in place.
    """
    step = _together if norms.is_cuda else _one_by_one
    step(p, gradients, state, learning_rate, norms, clip, decay)


def _together(
    p: Params,
    gradients: Params,
    state: AdamWState,
    learning_rate: Tensor,
    norms: Tensor,
    clip: float,
    decay: float,
) -> None:
    """All students in each kernel, for a device that would otherwise wait for the next launch."""
    moves = norms.isfinite()
    state.step += moves
    scale, rate = (clip / norms).clamp(max=1), learning_rate.to(norms) * moves
    short, long = (torch.where(moves, beta, 1.0) for beta in BETAS)  # who does not move keeps its moments
    size, spread = (1 - beta ** state.step.clamp(min=1) for beta in BETAS)
    for name, value in p.items():

        def each(x: Tensor, dims: int = value.dim()) -> Tensor:
            return x.view(-1, *[1] * (dims - 1))

        gradient = gradients[name].mul_(each(scale)).masked_fill_(~each(moves), 0.0)
        mean, square = state.mean[name], state.square[name]
        mean.lerp_(gradient, each(1 - short).to(mean))
        square.mul_(each(long)).addcmul_(gradient, each(1 - long) * gradient)
        if decays(name):
            value.mul_(each(1 - rate * decay))
        deviation = (square / each(spread)).sqrt_().add_(EPS)
        value.sub_(each(rate / size) * mean / deviation)


def _one_by_one(
    p: Params,
    gradients: Params,
    state: AdamWState,
    learning_rate: Tensor,
    norms: Tensor,
    clip: float,
    decay: float,
) -> None:
    """Torch's own fused kernel on each student's slice, since it takes one learning rate; `grad_scale` clips."""
    decayed, kept = [k for k in p if decays(k)], [k for k in p if not decays(k)]
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
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=rate,
                weight_decay=weight_decay,
                eps=EPS,
                maximize=False,
            )
        state.step[n] += 1
