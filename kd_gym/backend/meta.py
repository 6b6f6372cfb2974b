"""How a student would change, and how that depends on its teacher: what gradient-based controllers are made of.

A teacher reaches a student's later loss only through the gradient of the student's update. With theta' = theta - u(g)
and v = d loss(theta') / d theta', the meta-gradient is -(d2 L / d theta_t d theta) (lr P v), P being the optimiser's
preconditioner, held constant. The mixed second derivative needs no graph through the update: the slope of L along
lr P v is one number, and its gradient by the teacher's parameters is all of it.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_gym.backend.encoder import Dropout, Params
from kd_gym.backend.optim import BETAS, EPS, AdamWState, adamw_step, gradient_norms


class Lookahead(NamedTuple):
    """Parameters after an update that was not made, and how much each gives way to its gradient: lr P."""

    params: Params
    pull: Params


@torch.no_grad()
def look_ahead(
    p: Params,
    gradients: Params,
    state: AdamWState,
    learning_rate: Tensor,
    clip: float = 1.0,
    decay: float = 0.01,
) -> Lookahead:
    """One AdamW step of all students on copies of plain tensors; `p` and `state` stay as they are.

    As in `adamw_step`, `gradients` are clipped in place.
    """
    ahead = {name: value.detach().clone() for name, value in p.items()}
    mean, square = ({name: value.clone() for name, value in group.items()} for group in (state.mean, state.square))
    moved = AdamWState(mean, square, state.step.clone())
    norms = gradient_norms(gradients)
    adamw_step(ahead, gradients, moved, learning_rate, norms, clip, decay)
    step = moved.step.to(norms)
    factor = learning_rate.to(norms) * (1 - BETAS[0]) / (1 - BETAS[0] ** step) * (clip / norms).clamp(max=1)

    def pull(name: str) -> Tensor:
        shape = (-1, *[1] * (ahead[name].dim() - 1))
        deviation = (moved.square[name] / (1 - BETAS[1] ** step).view(shape).to(moved.square[name])).sqrt() + EPS
        return factor.view(shape).to(deviation) / deviation

    return Lookahead(ahead, {name: pull(name) for name in ahead})


@torch.no_grad()
def sgd_ahead(p: Params, gradients: Params, learning_rate: float) -> Lookahead:
    """The same with one plain gradient step."""
    ahead = {name: value.detach() - learning_rate * gradients[name] for name, value in p.items()}
    return Lookahead(ahead, {name: torch.full_like(value, learning_rate) for name, value in ahead.items()})


def norm(direction: Mapping[Any, Tensor]) -> Tensor:
    """The norm of all tensors together."""
    total: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in direction.values()]))
    return total


def slope(loss: Callable[[Params], Tensor], p: Params, direction: Params, radius: float | None = None) -> Tensor:
    """d loss(p + a direction) / d a at a = 0, of the shape of the loss; it can be differentiated by what else the loss
    depends on.

    Args:
        loss: a function of the parameters.
        p: where.
        direction: the way to go, of the shape of `p`.
        radius: None or 0 is exact, in forward mode. Otherwise central differences, that far to both sides (LGTM's
            released code: eps = radius / |direction| with radius 0.01).
    """
    still = {name: value.detach() for name, value in p.items()}
    if not radius:
        found: Tensor = torch.func.jvp(loss, (still,), (direction,))[1]
        return found
    eps = radius / norm(direction).clamp_min(1e-12)
    there, back = ({name: still[name] + s * eps * direction[name] for name in still} for s in (1, -1))
    return (loss(there) - loss(back)) / (2 * eps)


def times(left: Params, right: Params) -> Params:
    """The product of each pair of tensors."""
    return {name: value * right[name] for name, value in left.items()}


def dropout_of(rate: float, seeds: Sequence[int], update: int, stream: int = 0) -> Dropout:
    """Dropout whose masks follow from (student seed, update, stream, place in the pass)."""

    def drop(x: Tensor, place: str) -> Tensor:
        masks = []
        for seed in seeds:
            key = zlib.crc32(repr((seed, update, stream, place)).encode())
            random = torch.Generator(x.device).manual_seed(key)
            masks.append(torch.rand(x.shape[1:], generator=random, device=x.device) >= rate)
        return x * torch.stack(masks) / (1 - rate)

    return drop
