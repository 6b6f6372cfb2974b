"""Token rows of one split on the device, and padded batches of them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """A padded batch, all of shape [..., B, T]: word piece ids, segment ids, and where there is a token."""

    ids: Tensor
    types: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """All rows of a split, tokenised once and kept end to end.

    `flat` holds the word pieces of all rows one after the other, as numbers of the trimmed vocabulary;
    `start`, `length` and `second` (where the second text begins; the length if there is none) are [rows].
    """

    flat: Tensor
    start: Tensor
    length: Tensor
    second: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "TokenSplit":
        """The same rows on another device."""
        return TokenSplit(*(t.to(device) for t in (self.flat, self.start, self.length, self.second, self.labels)))

    def __add__(self, other: "TokenSplit") -> "TokenSplit":
        """The rows of both, these first."""
        mine, theirs = (
            (split.flat, split.start + offset, split.length, split.second, split.labels)
            for split, offset in ((self, 0), (other, len(self.flat)))
        )
        return TokenSplit(*(torch.cat(pair) for pair in zip(mine, theirs, strict=True)))

    def batch(self, rows: Tensor, width: int | None = None) -> Tokens:
        """The tokens of rows [..., B], padded with id 0 to `width`, or to the longest of them."""
        length = self.length[rows].unsqueeze(-1)
        place = torch.arange(width or int(length.max()), device=rows.device)
        mask = place < length
        at = (self.start[rows].unsqueeze(-1) + place).clamp_(max=len(self.flat) - 1)
        types = mask & (place >= self.second[rows].unsqueeze(-1))
        return Tokens(self.flat[at] * mask, types.long(), mask)

    def by_length(self, limit: int | None = None) -> Tensor:
        """Row numbers in order of length: the first `limit` rows of the split, or all."""
        return torch.argsort(self.length[:limit], stable=True)

    def batches(self, limit: int | None = None, size: int = 64) -> list[tuple[Tokens, Tensor]]:
        """The first `limit` rows, or all, as padded batches [1, B, T] with their labels [B], for evaluation."""
        return [(self.batch(rows.unsqueeze(0)), self.labels[rows]) for rows in self.by_length(limit).split(size)]
