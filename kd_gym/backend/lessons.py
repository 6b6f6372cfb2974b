"""What students are given: rows, labels and what teachers say of them, as functions of seed, context and update."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kd_gym.backend.encoder import Detail, Encoded
from kd_gym.backend.knowledge import KNOWLEDGE, TeacherBatch, matched_layers
from kd_gym.backend.state import Context
from kd_gym.backend.store import Store
from kd_gym.backend.terms import Recipe
from kd_gym.errors import KDGymError
from kd_gym.tasks.batches import Buckets, RowStream, flip_labels
from kd_gym.tasks.tokens import TokenSplit


class Lessons:
    """Who each of N students is, and what follows from it.

    Args:
        train: the rows they learn from, on their device.
        teachers: sets of M stored teachers over `train`, by the name that a context gives.
        classes: of the task.
        layers: of a student; layer l of it is matched with the teacher's layer at the same relative depth.
        recipe: how they are trained.
        students: N.
        dtype: of what teachers say.
        clean: so many of the last rows are clean in every context, and left out by none.
    """

    def __init__(
        self,
        train: TokenSplit,
        teachers: Mapping[str, Sequence[Store]],
        classes: int,
        layers: int,
        recipe: Recipe,
        students: int,
        dtype: torch.dtype,
        clean: int = 0,
    ) -> None:
        self.train = train
        self.noisy = len(train) - clean
        self.teachers = teachers
        self.classes = classes
        self.dtype = dtype
        self.first = next(iter(teachers.values()))
        if any(len(group) != len(self.first) for group in teachers.values()):
            raise KDGymError("all teacher sets of a process must have the same number of teachers")
        self.m = len(self.first)
        self.layers = layers
        self.late = any("late" in KNOWLEDGE.get(name).reads for name in recipe.knowledge)
        self.layer_map: list[Tensor] = []
        self.match(*(teacher.layers for teacher in self.first))
        self.buckets = Buckets(train.length, recipe.batch, recipe.data_key)
        self.seeds = [0] * students
        self.contexts = [Context()] * students
        self.streams: list[RowStream] = [None] * students  # type: ignore[list-item]
        self.labels = train.labels.expand(students, -1).clone()

    def match(self, *depths: int) -> None:
        """Find a layer for each of the student's in teachers of so many layers."""
        for depth in depths:
            if self.layers > depth:
                raise KDGymError(f"a teacher of {depth} layers has none for each of the student's {self.layers}")
        self.layer_map = [
            torch.tensor(matched_layers(self.layers, depth) + list(range(depth - self.layers, depth - 1)) * self.late)
            for depth in depths
        ]

    def identify(self, slot: int, seed: int, context: Context) -> None:
        """Set who a student is, and so its rows and its labels."""
        if context.teachers not in self.teachers:
            raise KDGymError(f"context {context.name!r} wants teachers {context.teachers!r}, which are not loaded")
        self.seeds[slot], self.contexts[slot] = seed, context
        self.streams[slot] = RowStream(self.buckets, seed, context.train_share, self.noisy)
        noisy = self.train.labels[: self.noisy]
        self.labels[slot, : self.noisy] = flip_labels(noisy, self.classes, context.label_noise, seed)

    def rows(self, slots: Sequence[int], updates: Sequence[int], count: int | None = None) -> tuple[Tensor, list[int]]:
        """The rows [n, B] that these students train on at these updates, and the width of each one's own.

        With `count`, the pool of so many candidates for them.
        """
        drawn = [self.streams[slot].rows(update, count) for slot, update in zip(slots, updates, strict=True)]
        rows = torch.from_numpy(np.stack([rows for rows, _ in drawn])).to(self.labels.device)
        return rows, [width for _, width in drawn]

    def labels_of(self, slots: Sequence[int], rows: Tensor) -> Tensor:
        """The labels [n, B] of these rows as each student sees them."""
        return self.labels[torch.tensor(slots, device=rows.device).unsqueeze(1), rows]

    def teach(self, slots: Sequence[int], rows: Tensor) -> list[TeacherBatch]:
        """What each of the M teachers of each student says of its rows [n, B]."""
        groups: dict[str, list[int]] = {}
        for place, slot in enumerate(slots):
            groups.setdefault(self.contexts[slot].teachers, []).append(place)
        order = torch.tensor([place for places in groups.values() for place in places]).argsort().to(rows.device)
        said = []
        for m in range(self.m):
            parts = [self.teachers[name][m].get(rows[places], self.layer_map[m]) for name, places in groups.items()]
            logits, cls = (torch.cat([getattr(part, field) for part in parts]) for field in ("logits", "cls"))
            said.append(self._batch(logits[order].to(self.dtype), cls[order].to(self.dtype)))
        return said

    def matched(self, said: Encoded) -> TeacherBatch:
        """What a live teacher says [n, B, ...], with the layers that the student's are matched with."""
        return self._batch(said.logits, said.cls[:, self.layer_map[0].to(said.cls.device)], said.detail)

    def _batch(self, logits: Tensor, cls: Tensor, detail: Detail | None = None) -> TeacherBatch:
        """With the states of the layer map [n, L or 2 L - 1, B, H_t] told apart."""
        matched, late = cls[:, : self.layers], cls[:, self.layers :]
        return TeacherBatch(logits, matched, detail, late if late.shape[1] else None)
