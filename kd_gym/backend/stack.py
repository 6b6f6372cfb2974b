"""A stack of students in lockstep, and what they and their teachers make of a batch."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kd_gym.backend.checkpoint import StudentInit
from kd_gym.backend.encoder import Dropout, Encoded, Params, encode, forward_flops, keep, parameter_shapes
from kd_gym.backend.knowledge import KNOWLEDGE, Batch, KnowledgeType, TeacherBatch
from kd_gym.backend.layout import Layout
from kd_gym.backend.lessons import Lessons
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.memory import free_bytes
from kd_gym.backend.optim import AdamWState
from kd_gym.backend.state import Context, State
from kd_gym.backend.store import Store
from kd_gym.backend.terms import Control, Cost, Forward, Recipe
from kd_gym.errors import KDGymError
from kd_gym.tasks.tokens import Tokens, TokenSplit

MIN_SCALE = 1e-3


def _check_memory(shapes: Iterable[tuple[int, ...]], students: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise if not even parameters, moments and gradients fit: a system may else kill the process without a word."""
    each, free = 4 * dtype.itemsize * sum(math.prod(shape) for shape in shapes), free_bytes(device)
    if free is not None and students * each > free:
        raise KDGymError(
            f"{students} students need {students * each / 2**30:.1f} GB for parameters and optimiser alone, and "
            f"{free / 2**30:.1f} GB are free: at most {free // each} fit (`kd-gym doctor --fit ID` measures how many)"
        )


class StudentStack:
    """N students, each with a seed, a context and a place in its own run: what they are, and what they make of a batch.

    Args:
        train: the rows they learn from.
        teachers: sets of M stored teachers over `train`, by the name that a context gives.
        init: where students start.
        recipe: how they are trained.
        students: N.
        device: where they live.
        dtype: of parameters and losses.
        live: the teachers, one for each student, where they are to run in the loop; the stored ones are silent then.
        clean: so many of the last rows are clean in every context, and left out by none.

    Nothing here knows of rewards or agents, and nothing draws from a global generator.
    """

    def __init__(
        self,
        train: TokenSplit,
        teachers: Mapping[str, Sequence[Store]],
        init: StudentInit,
        recipe: Recipe,
        students: int = 1,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        live: LiveTeacher | None = None,
        clean: int = 0,
    ) -> None:
        self.live = self._own = live
        self.device = device or torch.device("cpu")
        self.train = train.to(self.device)
        self.init = init
        self.recipe = recipe
        self.students = students
        self.dtype = dtype
        self.knowledge: list[KnowledgeType] = [KNOWLEDGE.get(name) for name in recipe.knowledge]
        self.detail = any("tokens" in k.reads for k in self.knowledge)
        arch = init.arch
        _check_memory(parameter_shapes(arch).values(), students, dtype, self.device)
        self.lessons = Lessons(self.train, teachers, arch.classes, arch.layers, recipe, students, dtype, clean)
        self.layout = Layout(parameter_shapes(arch) | self._head_shapes())
        self.packed = self.layout.zeros(students, dtype, self.device)
        self.packed_adam = AdamWState.zeros(self.packed)
        self.params = {name: value.requires_grad_() for name, value in self.layout.views(self.packed).items()}
        self.adam = self.packed_adam.seen(self.layout.views)
        self.update = torch.zeros(students, dtype=torch.long)
        self.failed = torch.zeros(students, dtype=torch.bool)
        self.reasons = [""] * students  # of failures
        self.scale = torch.ones(students, len(self.knowledge), self.lessons.m, dtype=dtype, device=self.device)
        self.cost = Cost.zeros(students)

    def _head_shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            f"head.{k.name}.{m}.{name}": shape
            for k in self.knowledge
            for m, teacher in enumerate(self.lessons.first)
            for name, shape in k.heads(self.init.arch, teacher.width).items()
        }

    # ------------------------------------------------------------------ where students start

    @torch.no_grad()
    def reset(self, seeds: Sequence[int], contexts: Sequence[Context], slots: Sequence[int] | None = None) -> None:
        """Start new runs in these slots (all by default): weights, data order and noise follow from seed and context.

        Then the scale of each knowledge loss is measured on the first batches, once, and frozen.
        """
        chosen = list(range(self.students)) if slots is None else list(slots)
        if self.live is not None and self.live is not self._own:
            self.live = self._own
            self.lessons.match(self.lessons.first[0].layers)
        for slot, seed, context in zip(chosen, seeds, contexts, strict=True):
            self.lessons.identify(slot, seed, context)
            random = torch.Generator().manual_seed(seed + (1 << 40))  # another stream than the student's own
            start = self.init.draw(seed)
            for name, value in self.params.items():
                if name in start:
                    value[slot] = start[name].to(value)
                else:
                    value[slot] = (torch.randn(value.shape[1:], generator=random) * value.shape[-2] ** -0.5).to(value)
                self.adam.mean[name][slot] = 0
                self.adam.square[name][slot] = 0
            self.adam.step[slot] = 0
            self.update[slot] = 0
            self.failed[slot] = False
            self.reasons[slot] = ""
            if self.live is not None:
                self.live.reset(slot, context.teachers)
                if self.live.untuned:
                    for part in ("weight", "bias"):
                        self.params[f"classifier.{part}"][slot] = 0
            for flops in self.cost.parts:
                flops[slot] = 0
        if not self.recipe.scale_batches or (self.live is not None and self.live.untuned):
            self.scale[chosen] = 1
            return
        at = torch.tensor(chosen)
        params = {name: value[at.to(self.device)] for name, value in self.params.items()}
        measured = []
        for offset in range(self.recipe.scale_batches):
            batch = self._forward(params, chosen, offset)
            measured.append(batch.losses.mean(-1))
            self.cost.student[chosen] += batch.flops
        self.scale[at.to(self.device)] = torch.stack(measured).mean(0).clamp_(min=MIN_SCALE)

    def adopt(self, live: LiveTeacher) -> None:
        """Learn from other live teachers, until the next reset."""
        self.live = live
        self.lessons.match(live.depth)

    def fail(self, slot: int, reason: str) -> None:
        """End a student's run: it stays as it is."""
        self.failed[slot] = True
        self.reasons[slot] = self.reasons[slot] or reason

    # ------------------------------------------------------------------ the loss

    def _rows(self, slots: Sequence[int], offset: int = 0, count: int | None = None) -> tuple[Tensor, list[int]]:
        """The rows [n, B] that these students train on `offset` updates from now, and the width of each one's own.

        With `count`, the pool of so many candidates for them.
        """
        return self.lessons.rows(slots, [int(self.update[slot]) + offset for slot in slots], count)

    def _forward(
        self,
        params: Params,
        slots: Sequence[int],
        offset: int = 0,
        drawn: tuple[Tensor, list[int]] | None = None,
    ) -> Forward:
        """The losses of these students (with these parameters) on the batch `offset` updates from now, or on `drawn`
        rows and their widths.
        """
        rows, widths = drawn or self._rows(slots, offset)
        labels = self.lessons.labels_of(slots, rows)
        tokens = self.train.batch(rows, max(widths))
        encoded = self.encode(params, tokens)
        teachers = self._teach(slots, rows, tokens, widths)
        losses = self.losses(params, encoded, teachers, labels, self.progress[list(slots)])
        flops = np.array([forward_flops(self.init.arch, rows.shape[-1], width, self.detail) for width in widths])
        return Forward(losses, encoded, teachers, labels, tokens.ids, flops)

    def encode(self, params: Params, tokens: Tokens, dropout: Dropout = keep, plain: bool = False) -> Encoded:
        """What students with these parameters say of tokens [N or 1, B, T].

        `plain` attention has second derivatives and derivatives in forward mode, and is taken where fused would not do.
        """
        attention = "plain" if plain or self.detail or dropout is not keep else self.recipe.attention
        return encode(params, self.init.arch, tokens, attention, dropout, self.detail, self.recipe.precision)

    def _teach(self, slots: Sequence[int], rows: Tensor, tokens: Tokens, widths: list[int]) -> list[TeacherBatch]:
        """What the teachers of these students say of their rows, looked up or, where they live, asked."""
        if self.live is None:
            return self.lessons.teach(slots, rows)
        with torch.no_grad(), self.cost.timed("teacher"):
            said = self.live(tokens, list(slots), detail=self.detail)
        self.cost.teacher[list(slots)] += [self.live.network.flops(rows.shape[-1], w, self.detail) for w in widths]
        return [self.lessons.matched(said)]

    def coming(self, pool: int | None = None) -> tuple[Tokens, Tensor]:
        """The tokens [N, B, T] and labels [N, B] of the coming update, or of the pool of candidates for it."""
        slots = range(self.students)
        rows, widths = self._rows(slots, count=pool)
        return self.train.batch(rows, max(widths)), self.lessons.labels_of(slots, rows)

    def each(
        self, params: Params, encoded: Encoded, teachers: list[TeacherBatch], labels: Tensor, control: Control
    ) -> Tensor:
        """The loss of each sample under a control [N, B]: the design's formula before its mean over samples."""
        return (self.weights(control) * self.losses(params, encoded, teachers, labels, self.progress)).sum((1, 2))

    @property
    def progress(self) -> Tensor:
        """The part of each student's run that is done [N]."""
        return (self.update / self.recipe.horizon).clamp(max=1).to(self.device)

    def losses(
        self, params: Params, encoded: Encoded, teachers: list[TeacherBatch], labels: Tensor, progress: Tensor
    ) -> Tensor:
        """Every knowledge loss of every sample from every teacher [n, K, M, B]; `params` hold the trained maps."""
        losses = []
        for k in self.knowledge:
            per_teacher = []
            for m, teacher in enumerate(teachers if k.reads else teachers[:1]):
                prefix = f"head.{k.name}.{m}."
                heads = {name[len(prefix) :]: v for name, v in params.items() if name.startswith(prefix)}
                per_teacher.append(k.loss(Batch(encoded, teacher, labels, heads, self.recipe.tau, progress)))
            losses.append(torch.stack(per_teacher, 1).expand(-1, self.lessons.m, -1))
        return torch.stack(losses, 1)

    def weights(self, control: Control) -> Tensor:
        """The factor of every loss of every sample [N, K, M, B or 1]: w_k t_m s_i / c_km."""
        weights = control.knowledge.to(self.scale)[:, :, None, None] / self.scale.unsqueeze(-1)
        if control.teachers is None:
            weights = weights / self.lessons.m
        elif control.teachers.dim() == 2:
            weights = weights * control.teachers.to(weights)[:, None, :, None]
        else:
            weights = weights * control.teachers.to(weights).mT.unsqueeze(1)
        return weights if control.samples is None else weights * control.samples.to(weights)[:, None, None]

    def learning_rate(self) -> Tensor:
        """Each student's learning rate at its next update [N]."""
        horizon = self.recipe.horizon
        warm = max(1, horizon // 10)
        factor = torch.minimum((self.update + 1) / warm, (horizon - self.update) / max(1, horizon - warm))
        rates = torch.tensor([context.rate for context in self.lessons.contexts])
        return self.recipe.learning_rate * rates * factor.clamp(min=0.0)

    # ------------------------------------------------------------------ states

    def _held(self) -> Params:
        """All tensors [N, ...] on the device that a state is made of, by name."""
        held = {"scale": self.scale}
        sides = {"": (self.params, self.adam)}
        if self.live is not None:
            sides["live."] = self.live.params, self.live.adam
        for side, (params, adam) in sides.items():
            held[f"{side}step"] = adam.step
            for kind, group in (("param", params), ("mean", adam.mean), ("square", adam.square)):
                held |= {f"{side}{kind}.{name}": value for name, value in group.items()}
        return held

    def snapshot(self, slots: Sequence[int] | None = None) -> State:
        """A copy of these students' states (all by default), from which their runs go on bit by bit."""
        chosen = list(range(self.students)) if slots is None else list(slots)
        at = torch.tensor(chosen)
        tensors = {name: value.detach()[at.to(self.device)].cpu() for name, value in self._held().items()}
        tensors |= {"update": self.update[at], "failed": self.failed[at]}
        tensors["flops"] = torch.from_numpy(np.stack(self.cost.parts, 1))[at]
        return State(
            tensors,
            [self.lessons.seeds[i] for i in chosen],
            [self.lessons.contexts[i] for i in chosen],
            [self.reasons[i] for i in chosen],
        )

    @torch.no_grad()
    def restore(self, state: State, slots: Sequence[int] | None = None) -> None:
        """Put a snapshot's students into these slots (all by default)."""
        chosen = list(range(self.students)) if slots is None else list(slots)
        for slot, seed, context in zip(chosen, state.seeds, state.contexts, strict=True):
            self.lessons.identify(slot, seed, context)
        at = torch.tensor(chosen)
        for name, value in self._held().items():
            value[at.to(self.device)] = state.tensors[name].to(value)
        self.update[at] = state.tensors["update"]
        self.failed[at] = state.tensors["failed"]
        for slot, reason in zip(chosen, state.reasons, strict=True):
            self.reasons[slot] = reason
        for flops, kept in zip(self.cost.parts, state.tensors["flops"].numpy().T, strict=True):
            flops[chosen] = kept
