"""A functional BERT-family classifier over N students at once.

Parameters are one dict of tensors with a leading axis N; the forward pass is a function of them, so lookahead and
meta-gradients need no copies. Logits equal those of `transformers` (a test holds them together).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_gym.tasks.tokens import Tokens

Params = dict[str, Tensor]
Attention = Literal["fused", "plain"]


@dataclass(frozen=True)
class Architecture:
    """The shape of a BERT-family classifier."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    classes: int
    positions: int = 512
    segments: int = 2
    eps: float = 1e-12


class Encoded(NamedTuple):
    """What a student says of a batch: logits [N, B, C], and the [CLS] state of every layer [N, L, B, H]."""

    logits: Tensor
    cls: Tensor


def parameter_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of one student. Query, key and value stand together as `qkv`."""
    h, f = arch.hidden, arch.intermediate
    shapes: dict[str, tuple[int, ...]] = {
        "word": (arch.vocabulary, h),
        "position": (arch.positions, h),
        "segment": (arch.segments, h),
        "norm.weight": (h,),
        "norm.bias": (h,),
    }
    for i in range(arch.layers):
        shapes |= {
            f"{i}.qkv.weight": (3 * h, h),
            f"{i}.qkv.bias": (3 * h,),
            f"{i}.out.weight": (h, h),
            f"{i}.out.bias": (h,),
            f"{i}.norm1.weight": (h,),
            f"{i}.norm1.bias": (h,),
            f"{i}.up.weight": (f, h),
            f"{i}.up.bias": (f,),
            f"{i}.down.weight": (h, f),
            f"{i}.down.bias": (h,),
            f"{i}.norm2.weight": (h,),
            f"{i}.norm2.bias": (h,),
        }
    return shapes | {
        "pooler.weight": (h, h),
        "pooler.bias": (h,),
        "classifier.weight": (arch.classes, h),
        "classifier.bias": (arch.classes,),
    }


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [N, R, I], weight [N, O, I], bias [N, O] -> [N, R, O]."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def _norm(x: Tensor, p: Params, name: str, eps: float) -> Tensor:
    """Layer norm of x [N, R, H] with each student's own weight and bias."""
    plain = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(p[f"{name}.bias"].unsqueeze(1), plain, p[f"{name}.weight"].unsqueeze(1))


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, kind: Attention) -> Tensor:
    """q [S, A, Tq, D] over k, v [S, A, T, D]; allowed [S, 1, 1, T].

    `plain` is made of matrix products alone: torch's fused attention has no second derivative on a CPU.
    """
    if kind == "fused":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(scores.masked_fill(~allowed, -torch.inf).softmax(-1), v)


def encode(p: Params, arch: Architecture, tokens: Tokens, attention: Attention = "plain") -> Encoded:
    """Logits and [CLS] states of N students.

    Args:
        p: parameters, each [N, ...].
        arch: their shape.
        tokens: [N, B, T], or [1, B, T] where all students see the same batch.
        attention: `fused` or `plain`; equal up to rounding.

    Of the last layer only [CLS] is ever read, so only its query, output and feed-forward are computed.
    """
    n, h, a = len(p["word"]), arch.hidden, arch.heads
    b, t = tokens.ids.shape[-2:]
    student = torch.arange(n, device=tokens.ids.device).view(n, 1, 1)
    word = F.embedding(tokens.ids + student * arch.vocabulary, p["word"].flatten(0, 1))
    segment = F.embedding(tokens.types + student * arch.segments, p["segment"].flatten(0, 1))
    x = word + segment + p["position"][:, None, :t]
    x = _norm(x.view(n, b * t, h), p, "norm", arch.eps)
    allowed = tokens.mask.expand(n, b, t).reshape(n * b, 1, 1, t)

    def heads(y: Tensor, count: int) -> Tensor:  # [N, B * count, H] -> [N * B, A, count, D]
        return y.view(n * b, count, a, h // a).transpose(1, 2)

    states = []
    for i in range(arch.layers):
        weight, bias = p[f"{i}.qkv.weight"], p[f"{i}.qkv.bias"]
        if i < arch.layers - 1:
            count = t
            q, k, v = linear(x, weight, bias).split(h, dim=-1)
        else:
            count = 1
            k, v = linear(x, weight[:, h:], bias[:, h:]).split(h, dim=-1)
            x = x.view(n, b, t, h)[:, :, 0]
            q = linear(x, weight[:, :h], bias[:, :h])
        mixed = _attend(heads(q, count), heads(k.contiguous(), t), heads(v.contiguous(), t), allowed, attention)
        mixed = mixed.transpose(1, 2).reshape(n, b * count, h)
        x = _norm(x + linear(mixed, p[f"{i}.out.weight"], p[f"{i}.out.bias"]), p, f"{i}.norm1", arch.eps)
        wide = F.gelu(linear(x, p[f"{i}.up.weight"], p[f"{i}.up.bias"]))
        x = _norm(x + linear(wide, p[f"{i}.down.weight"], p[f"{i}.down.bias"]), p, f"{i}.norm2", arch.eps)
        states.append(x.view(n, b, count, h)[:, :, 0])

    cls = torch.stack(states, dim=1)
    pooled = torch.tanh(linear(x.reshape(n, b, h), p["pooler.weight"], p["pooler.bias"]))
    return Encoded(linear(pooled, p["classifier.weight"], p["classifier.bias"]), cls)


def forward_flops(arch: Architecture, batch: int, width: int) -> int:
    """Floating point operations of one student's forward pass: two for each multiply-add of its matrix products."""
    h, f, tokens = arch.hidden, arch.intermediate, batch * width
    whole = tokens * (4 * h * h + 2 * h * f + 2 * width * h)
    last = tokens * 2 * h * h + batch * (2 * h * h + 2 * h * f + 2 * width * h)
    head = batch * (h * h + h * arch.classes)
    return 2 * ((arch.layers - 1) * whole + last + head)
