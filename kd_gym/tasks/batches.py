"""Which rows a student sees at an update: a function of its seed, its context and the update, with no state.

Rows are grouped by length. The bucket of update u, and so the batch's width, depends on the id and u alone: students
in lockstep share shapes. Which rows of the bucket are drawn depends on the student's own seed.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_gym.errors import KDGymError

_ORDER, _SHARE, _NOISE = range(3)  # streams of one student's seed
_LOOSE = 1.15  # a bucket is closed before its longest row is this much longer than its shortest one


class Buckets:
    """Rows of one split grouped by length, and the order in which batches visit the groups.

    A group holds at least 4 batches, and 1/24 of the rows or a narrow range of lengths. Within an epoch each group
    is visited in proportion to its rows, in an order drawn from (key, epoch).
    """

    def __init__(self, length: Tensor, batch: int, key: int) -> None:
        if len(length) < batch:
            raise KDGymError(f"train has {len(length)} rows, fewer than one batch of {batch}; add data")
        self.batch = batch
        self.key = key
        lengths = length.cpu().numpy()
        self.rows = self._group(lengths, batch)
        self.width = [int(lengths[rows].max()) for rows in self.rows]
        self._orders: dict[int, NDArray[np.int64]] = {}
        self.visits = np.array([max(1, round(len(rows) / batch)) for rows in self.rows])

    @staticmethod
    def _group(lengths: NDArray[np.int64], batch: int) -> list[NDArray[np.int64]]:
        order = np.argsort(lengths, kind="stable")
        groups: list[NDArray[np.int64]] = []
        begin = 0
        for end in (np.flatnonzero(np.diff(lengths[order], append=lengths.max() + 1)) + 1).tolist():
            size = end - begin
            next_length = lengths[order[end]] if end < len(order) else np.inf
            narrow_enough = next_length <= _LOOSE * lengths[order[begin]]
            if size >= 4 * batch and (size >= len(order) / 24 or not narrow_enough):
                groups.append(order[begin:end])
                begin = end
        if begin < len(order):
            rest = order[begin:]
            if groups and len(rest) < batch:
                rest = np.concatenate([groups.pop(), rest])
            groups.append(rest)
        return groups

    def visit(self, update: int) -> tuple[int, int]:
        """The bucket of an update, and how often it was visited before."""
        per_epoch = int(self.visits.sum())
        epoch, place = divmod(update, per_epoch)
        if epoch not in self._orders:
            base = np.repeat(np.arange(len(self.rows)), self.visits)
            self._orders[epoch] = np.random.default_rng([self.key, epoch]).permutation(base)
        order = self._orders[epoch]
        bucket = int(order[place])
        return bucket, epoch * int(self.visits[bucket]) + int((order[:place] == bucket).sum())


class RowStream:
    """The rows of one student: an endless shuffled stream through its share of each bucket.

    Rows from number `whole` on are left out by no share.
    """

    def __init__(self, buckets: Buckets, seed: int, share: float, whole: int | None = None) -> None:
        self.buckets = buckets
        self.seed = seed
        self.share = share
        self.whole = whole
        self._shuffled: dict[tuple[int, int], NDArray[np.int64]] = {}

    def _permuted(self, bucket: int, turn: int) -> NDArray[np.int64]:
        if (bucket, turn) not in self._shuffled:
            rows = self.buckets.rows[bucket]
            if self.share < 1:
                shared = rows if self.whole is None else rows[rows < self.whole]
                keep = np.random.default_rng([self.seed, _SHARE, bucket]).permutation(shared)
                keep = keep[: int(np.ceil(self.share * len(shared)))]
                rows = keep if self.whole is None else np.concatenate([keep, rows[rows >= self.whole]])
            self._shuffled.pop((bucket, turn - 2), None)
            self._shuffled[bucket, turn] = np.random.default_rng([self.seed, _ORDER, bucket, turn]).permutation(rows)
        return self._shuffled[bucket, turn]

    def rows(self, update: int, count: int | None = None) -> tuple[NDArray[np.int64], int]:
        """Row numbers [B] of an update and the width they are padded to. Small buckets wrap around.

        With `count`, so many instead: the stream of who chooses a batch out of larger pools.
        """
        bucket, visited = self.buckets.visit(update)
        missing = count or self.buckets.batch
        turn, place = divmod(visited * missing, len(self._permuted(bucket, 0)))
        parts = []
        while missing:
            part = self._permuted(bucket, turn)[place : place + missing]
            parts.append(part)
            missing -= len(part)
            turn, place = turn + 1, 0
        return np.concatenate(parts), self.buckets.width[bucket]


def flip_labels(labels: Tensor, classes: int, probability: float, seed: int) -> Tensor:
    """Labels [rows] of which each is another class with this probability, drawn from the seed."""
    if probability == 0:
        return labels
    random = np.random.default_rng([seed, _NOISE])
    flipped = random.random(len(labels)) < probability
    shift = random.integers(1, classes, len(labels)) * flipped
    return (labels + torch.from_numpy(shift).to(labels.device)) % classes
