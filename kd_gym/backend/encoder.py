"""A functional BERT-family classifier over N students at once.

Parameters are one dict of tensors with a leading axis N; the forward pass is a function of them, so lookahead and
meta-gradients need no copies. Logits equal those of `transformers` (a test holds them together).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_gym.tasks.tokens import Tokens

Params = dict[str, Tensor]
Attention = Literal["fused", "plain"]
Precision = Literal["float32", "bfloat16"]
Dropout = Callable[[Tensor, str], Tensor]  # a tensor [N, ...] and the name of its place in the pass


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


class Detail(NamedTuple):
    """What a pass says of every token: states of all layers [N, L, B, T, H], attention maps [N, L, B, A, T, T], the
    last layer's queries, keys and values [N, 3, B, T, H], the number of heads A, and where there is a token [N, B, T].
    """

    hidden: Tensor
    attention: Tensor
    last: Tensor
    heads: int
    mask: Tensor


class Encoded(NamedTuple):
    """What a student says of a batch: logits [N, B, C], and the [CLS] state of every layer [N, L, B, H].

    `word` [N, B, T, H] is what the tokens were looked up as. Who takes the gradient of it, not of the whole table,
    spares a zero for every word piece that the batch does not hold (`add_rows` makes one out of the other).
    `detail` is there where it was asked for.
    """

    logits: Tensor
    cls: Tensor
    word: Tensor
    detail: Detail | None = None

    def to(self, dtype: torch.dtype) -> "Encoded":
        """The same in this type; `word` stays what it is."""
        tokens = ("hidden", "attention", "last")
        detail = self.detail and self.detail._replace(**{name: getattr(self.detail, name).to(dtype) for name in tokens})
        return Encoded(self.logits.to(dtype), self.cls.to(dtype), self.word, detail)


def parameter_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of one student. Key and value stand together as `kv`.

    Matrices are [in, out], the other way round than in torch, so that their gradients come as they are stored.
    """
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
            f"{i}.q.weight": (h, h),
            f"{i}.q.bias": (h,),
            f"{i}.kv.weight": (h, 2 * h),
            f"{i}.kv.bias": (2 * h,),
            f"{i}.out.weight": (h, h),
            f"{i}.out.bias": (h,),
            f"{i}.norm1.weight": (h,),
            f"{i}.norm1.bias": (h,),
            f"{i}.up.weight": (h, f),
            f"{i}.up.bias": (f,),
            f"{i}.down.weight": (f, h),
            f"{i}.down.bias": (h,),
            f"{i}.norm2.weight": (h,),
            f"{i}.norm2.bias": (h,),
        }
    return shapes | {
        "pooler.weight": (h, h),
        "pooler.bias": (h,),
        "classifier.weight": (h, arch.classes),
        "classifier.bias": (arch.classes,),
    }


def _linear(x: Tensor, p: Params, name: str) -> Tensor:
    """x [N, R, I] through each student's own weight [N, I, O] and bias [N, O] -> [N, R, O], in the type of x."""
    return torch.baddbmm(p[f"{name}.bias"].to(x.dtype).unsqueeze(1), x, p[f"{name}.weight"].to(x.dtype))


def _places(ids: Tensor, students: int, rows: int) -> Tensor:
    """Where each student's row numbers [N or 1, ...] lie in the tables of all students, one below the other."""
    own = torch.arange(students, device=ids.device).view(-1, *[1] * (ids.dim() - 1))
    return ids + own * rows


def look_up(table: Tensor, ids: Tensor) -> Tensor:
    """The rows `ids` [N or 1, B, T] of each student's table [N, V, H] -> [N, B, T, H]."""
    return F.embedding(_places(ids, *table.shape[:2]), table.flatten(0, 1))


def add_rows(table: Tensor, ids: Tensor, rows: Tensor) -> None:
    """The way back of `look_up`: add `rows` [N, B, T, H] to the rows `ids` of each student's table, in place."""
    places = _places(ids, *table.shape[:2]).flatten()
    if table.is_cuda:  # sorts first: sums in the same order every time
        table.flatten(0, 1).index_put_((places,), rows.flatten(0, 2), accumulate=True)
    else:
        table.flatten(0, 1).index_add_(0, places, rows.flatten(0, 2))


def rows_norm(table: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """The norm [N] of each student's table that `add_rows` has made out of zeros, without a look at the rest of it.

    The rows of one word piece sum to its row of the table, so the sum of their products with it is its square.
    """
    own = look_up(table, ids)
    return (rows * own).flatten(1).sum(1).clamp_min(0).sqrt()


def clear_rows(table: Tensor, ids: Tensor) -> None:
    """Make zeros of what `add_rows` has written, in place."""
    table.flatten(0, 1).index_fill_(0, _places(ids, *table.shape[:2]).flatten(), 0.0)


def _norm(x: Tensor, p: Params, name: str, eps: float) -> Tensor:
    """Layer norm of x [N, R, H] with each student's own weight and bias, in the type of x."""
    plain = F.layer_norm(x, x.shape[-1:], eps=eps)
    weight, bias = (p[f"{name}.{part}"].to(x.dtype).unsqueeze(1) for part in ("weight", "bias"))
    return torch.addcmul(bias, plain, weight)


def keep(x: Tensor, place: str) -> Tensor:
    """No dropout."""
    return x


def _attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, drop: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """q [S, A, Tq, D] over k, v [S, A, T, D], allowed [S, 1, 1, T]: what is mixed, and the maps [S, A, Tq, T].

    Made of matrix products alone: torch's fused attention has no second derivative on a CPU.
    """
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    maps = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return torch.matmul(drop(maps), v), maps


def encode(
    p: Params,
    arch: Architecture,
    tokens: Tokens,
    attention: Attention = "plain",
    dropout: Dropout = keep,
    detail: bool = False,
    precision: Precision = "float32",
) -> Encoded:
    """Logits and [CLS] states of N students.

    Args:
        p: parameters, each [N, ...].
        arch: their shape.
        tokens: [N, B, T], or [1, B, T] where all students see the same batch.
        attention: `fused` or `plain`; equal up to rounding. Dropout and detail need `plain`.
        dropout: what drops elements, at the places where BERT does.
        detail: with the states of all tokens.
        precision: what layers compute in (`float32`: in the type of the parameters, which what comes out has always).

    Of the last layer only [CLS] is read without `detail`, so only its query, output and feed-forward are computed.
    """
    n, h, a = len(p["word"]), arch.hidden, arch.heads
    b, t = tokens.ids.shape[-2:]
    word, segment = look_up(p["word"], tokens.ids), look_up(p["segment"], tokens.types)
    x = (word + segment + p["position"][:, None, :t]).to(torch.bfloat16 if precision == "bfloat16" else word.dtype)
    x = dropout(_norm(x.view(n, b * t, h), p, "norm", arch.eps), "embeddings")
    allowed = tokens.mask.expand(n, b, t).reshape(n * b, 1, 1, t)

    kind = x.dtype if x.is_cuda else word.dtype  # a CPU's attention is three times as slow in bfloat16

    def heads(y: Tensor, count: int) -> Tensor:  # [N, B * count, H] -> [N * B, A, count, D]
        return y.view(n * b, count, a, h // a).transpose(1, 2).to(kind)

    def drop_maps(maps: Tensor, place: str) -> Tensor:
        return dropout(maps.view(n, -1, *maps.shape[1:]), place).view(maps.shape)

    states, hidden, maps = [], [], []
    for i in range(arch.layers):
        k, v = _linear(x, p, f"{i}.kv").split(h, dim=-1)
        count = t
        if i == arch.layers - 1 and not detail:
            x, count = x.view(n, b, t, h)[:, :, 0], 1
        q = _linear(x, p, f"{i}.q")
        if attention == "fused":
            mixed = F.scaled_dot_product_attention(heads(q, count), heads(k, t), heads(v, t), attn_mask=allowed)
        else:
            drop = functools.partial(drop_maps, place=f"{i}.maps")
            mixed, seen = _attend(heads(q, count), heads(k, t), heads(v, t), allowed, drop)
            maps.append(seen.view(n, b, a, count, t))
        mixed = mixed.transpose(1, 2).reshape(n, b * count, h).to(x.dtype)
        x = _norm(x + dropout(_linear(mixed, p, f"{i}.out"), f"{i}.out"), p, f"{i}.norm1", arch.eps)
        wide = F.gelu(_linear(x, p, f"{i}.up"))
        x = _norm(x + dropout(_linear(wide, p, f"{i}.down"), f"{i}.down"), p, f"{i}.norm2", arch.eps)
        hidden.append(x.view(n, b, count, h))
        states.append(hidden[-1][:, :, 0])

    cls = torch.stack(states, dim=1)
    pooled = torch.tanh(_linear(states[-1], p, "pooler"))
    logits = _linear(dropout(pooled, "pooled"), p, "classifier")
    if not detail:
        return Encoded(logits, cls, word).to(word.dtype)
    last = torch.stack([y.view(n, b, t, h) for y in (q, k, v)], dim=1)
    mask = tokens.mask.expand(n, b, t)
    said = Detail(torch.stack(hidden, 1), torch.stack(maps, 1), last, a, mask)
    return Encoded(logits, cls, word, said).to(word.dtype)


def forward_flops(arch: Architecture, batch: int, width: int, detail: bool = False) -> int:
    """Floating point operations of one student's forward pass: two for each multiply-add of its matrix products."""
    h, f, tokens = arch.hidden, arch.intermediate, batch * width
    whole = tokens * (4 * h * h + 2 * h * f + 2 * width * h)
    last = whole if detail else tokens * 2 * h * h + batch * (2 * h * h + 2 * h * f + 2 * width * h)
    head = batch * (h * h + h * arch.classes)
    return 2 * ((arch.layers - 1) * whole + last + head)
