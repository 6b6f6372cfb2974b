"""The distillation process: N students in lockstep under the control of somebody else."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kd_gym.backend.checkpoint import StudentInit
from kd_gym.backend.encoder import Dropout, Encoded, Params, add_rows, encode, forward_flops, keep, parameter_shapes
from kd_gym.backend.knowledge import KNOWLEDGE, Batch, KnowledgeType, TeacherBatch
from kd_gym.backend.lessons import Lessons
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.optim import AdamWState, adamw_step, gradient_norms
from kd_gym.backend.sampling import Selection, choose, difficulties, quantile_scores
from kd_gym.backend.state import Context, State
from kd_gym.backend.store import Store
from kd_gym.backend.terms import Control, Cost, Evaluation, Forward, Recipe, Trace
from kd_gym.tasks.tokens import Tokens, TokenSplit

Hook = Callable[["DistillationProcess", Control], Control]
MIN_SCALE = 1e-3
PROCESS_VERSION = 2  # a part of every kept score's key: raise it when a change here moves a student's numbers


@torch.no_grad()
def _trace(batch: Forward, norms: Tensor) -> Trace:
    log_p = batch.encoded.logits.log_softmax(-1)
    said = torch.stack([teacher.logits.argmax(-1) for teacher in batch.teachers], 1)  # [N, M, B]
    return Trace(
        batch.losses.mean((2, 3)),
        norms,
        -(log_p.exp() * log_p).sum(-1).mean(-1),
        (said == batch.encoded.logits.argmax(-1).unsqueeze(1)).float().mean(2),
        (said == batch.labels.unsqueeze(1)).float().mean(2),
    )


class DistillationProcess:
    """N students, each with a seed, a context and a place in its own run, trained together.

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

    Attributes:
        hook: called before each update with the process and the control; it may train the live teachers and gives
            the control of this update.

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
        self.hook: Hook | None = None
        self.device = device or torch.device("cpu")
        self.train = train.to(self.device)
        self.init = init
        self.recipe = recipe
        self.students = students
        self.dtype = dtype
        self.knowledge: list[KnowledgeType] = [KNOWLEDGE.get(name) for name in recipe.knowledge]
        self.detail = any("tokens" in k.reads for k in self.knowledge)
        arch = init.arch
        self.lessons = Lessons(self.train, teachers, arch.classes, arch.layers, recipe, students, dtype, clean)
        self.params: Params = {
            name: torch.zeros(students, *shape, dtype=dtype, device=self.device).requires_grad_()
            for name, shape in (parameter_shapes(arch) | self._head_shapes()).items()
        }
        self.adam = AdamWState.zeros(self.params)
        self._table_gradient = torch.zeros_like(self.params["word"], requires_grad=False)  # kept: fresh memory is slow
        self.update = torch.zeros(students, dtype=torch.long)
        self.failed = torch.zeros(students, dtype=torch.bool)
        self.reasons = [""] * students  # of failures
        self.scale = torch.ones(students, len(self.knowledge), self.lessons.m, dtype=dtype, device=self.device)
        self.cost = Cost.zeros(students)
        self._ahead: Forward | None = None  # of the coming batch, where it was looked at
        self._looked = torch.full((students,), -1)  # the update whose pool each student has paid for

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
        self._ahead = None
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
            self._looked[slot] = -1
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
        return encode(params, self.init.arch, tokens, attention, dropout, self.detail)

    def _teach(self, slots: Sequence[int], rows: Tensor, tokens: Tokens, widths: list[int]) -> list[TeacherBatch]:
        """What the teachers of these students say of their rows, looked up or, where they live, asked."""
        if self.live is None:
            return self.lessons.teach(slots, rows)
        begin = time.perf_counter()
        with torch.no_grad():
            said = self.live(tokens, list(slots), detail=self.detail)
        self.cost.teacher[list(slots)] += [self.live.network.flops(rows.shape[-1], w, self.detail) for w in widths]
        self.cost.seconds["teacher"] += time.perf_counter() - begin
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

    # ------------------------------------------------------------------ training and evaluation

    def learning_rate(self) -> Tensor:
        """Each student's learning rate at its next update [N]."""
        horizon = self.recipe.horizon
        warm = max(1, horizon // 10)
        factor = torch.minimum((self.update + 1) / warm, (horizon - self.update) / max(1, horizon - warm))
        rates = torch.tensor([context.rate for context in self.lessons.contexts])
        return self.recipe.learning_rate * rates * factor.clamp(min=0.0)

    def _gradients(self, total: Tensor, batch: Forward) -> Params:
        """The gradient of every parameter; that of the word table is valid until the next call."""
        wanted = self.params | {"word": batch.encoded.word}
        found = torch.autograd.grad(total, list(wanted.values()), materialize_grads=True)
        gradients = dict(zip(wanted, found, strict=True))
        add_rows(self._table_gradient.zero_(), batch.ids, gradients["word"])
        return gradients | {"word": self._table_gradient}

    def advance(self, control: Control, updates: int) -> Trace:
        """Train every student for so many updates under one control.

        A student whose loss or gradient is not finite is marked in `failed` [N] and stays as it was before.
        """
        begin, others = time.perf_counter(), self.cost.seconds["teacher"]
        slots = range(self.students)
        asked, weights = control, self.weights(control)
        sums: list[Trace] = []
        for _ in range(updates):
            if self.hook is not None:
                asked_at = time.perf_counter()
                control = self.hook(self, asked)
                weights = self.weights(control)
                self.cost.seconds["controller"] += time.perf_counter() - asked_at
                begin += time.perf_counter() - asked_at
            drawn, factor = self._select(control.selection) if control.selection else (None, 1)
            ahead, self._ahead = self._ahead if self.live is None else None, None  # a live teacher may have changed
            batch = self._forward(self.params, slots, drawn=drawn) if drawn or not ahead else ahead
            total = (weights * factor * batch.losses).sum((1, 2)).mean(-1)
            gradients = self._gradients(total.sum(), batch)
            norms = torch.where(total.detach().isfinite(), gradient_norms(gradients), torch.nan)
            for slot in (~norms.isfinite().cpu()).nonzero().flatten().tolist():
                self.fail(slot, "the student's loss or gradient is not finite")
            norms = torch.where(self.failed.to(norms.device), torch.nan, norms)
            rate = self.learning_rate()
            adamw_step(self.params, gradients, self.adam, rate, norms, self.recipe.clip, self.recipe.decay)
            self.update += 1
            self.cost.student += 3 * batch.flops  # the backward pass costs two forward passes
            sums.append(_trace(batch, norms))
        self.cost.seconds["student"] += time.perf_counter() - begin - (self.cost.seconds["teacher"] - others)
        return Trace(*(torch.stack(column).mean(0).float().cpu() for column in zip(*sums, strict=True)))

    @torch.no_grad()
    def _select(self, selection: Selection) -> tuple[tuple[Tensor, list[int]], Tensor]:
        """The rows chosen for the coming update, with their widths, and the factor [N, 1, 1, B] of their losses."""
        slots = range(self.students)
        rows, widths = self._rows(slots, count=selection.pool)
        scores = selection.scores.to(self.device)
        if scores.dim() == 3:
            pool = self._forward(self.params, slots, drawn=(rows, widths))
            self.cost.student += pool.flops
            measures = difficulties(pool.encoded.logits, pool.teachers[0], pool.labels)
            scores = quantile_scores(measures, scores)
        keys = list(zip(self.lessons.seeds, self.update.tolist(), strict=True))
        places, weights = choose(selection, scores, self.recipe.batch, keys)
        return (rows.gather(-1, places), widths), weights.to(self.scale)[:, None, None]

    def peek(self, pool: int | None = None) -> Forward:
        """What students and teachers make of the batch that is trained on next, or of a pool of candidates for it.

        The coming update takes over the pass over its batch, so that it costs nothing more; one over a pool does.
        """
        begin = time.perf_counter()
        slots = range(self.students)
        if pool is None:
            batch = self._ahead = self._ahead or self._forward(self.params, slots)
        else:
            with torch.no_grad():
                batch = self._forward(self.params, slots, drawn=self._rows(slots, count=pool))
            self.cost.student += batch.flops * (self._looked != self.update).numpy()
            self._looked = self.update.clone()
        self.cost.seconds["student"] += time.perf_counter() - begin
        logits, cls, word = (part.detach() for part in batch.encoded[:3])
        return batch._replace(losses=batch.losses.detach(), encoded=Encoded(logits, cls, word))

    @torch.no_grad()
    def review(self) -> tuple[Tensor, Tensor]:
        """On the batch of the last update, after it: cross-entropy with the labels, and tau^2 KL of the students from
        the mean of all teachers' soft targets, each [N].
        """
        begin = time.perf_counter()
        batch = self._forward(self.params, range(self.students), -1)
        tau, log_p = self.recipe.tau, (batch.encoded.logits / self.recipe.tau).log_softmax(-1)
        mean = torch.stack([(teacher.logits / tau).softmax(-1) for teacher in batch.teachers]).mean(0)
        soft = tau**2 * (mean * (mean.clamp_min(1e-9).log() - log_p)).sum(-1).mean(-1)
        chosen = batch.encoded.logits.log_softmax(-1).gather(-1, batch.labels.unsqueeze(-1))
        self.cost.student += batch.flops
        self.cost.seconds["student"] += time.perf_counter() - begin
        return -chosen.mean((1, 2)), soft

    @torch.no_grad()
    def evaluate(
        self, batches: Sequence[tuple[Tokens, Tensor]], charged: NDArray[np.bool_] | None = None
    ) -> Evaluation:
        """All students on the same rows (`TokenSplit.batches` of a split), without gradients.

        The cost goes to the students that are `charged` [N] (all by default): those that asked for it.
        """
        begin = time.perf_counter()
        loss, predictions, labels = [], [], []
        for tokens, target in batches:
            logits = encode(self.params, self.init.arch, tokens, self.recipe.attention).logits
            flat = F.cross_entropy(logits.flatten(0, 1), target.repeat(self.students), reduction="none")
            loss.append(flat.view(self.students, -1))
            predictions.append(logits.argmax(-1))
            labels.append(target)
            flops = forward_flops(self.init.arch, *tokens.ids.shape[-2:])
            self.cost.evaluation += flops if charged is None else charged * flops
        predicted = torch.cat(predictions, 1)
        right = (predicted == torch.cat(labels)).float().mean(1)
        self.cost.seconds["evaluation"] += time.perf_counter() - begin
        return Evaluation(torch.cat(loss, 1).mean(1).float().cpu(), right.cpu(), predicted.cpu())

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
        self._ahead = None
        for slot, seed, context in zip(chosen, state.seeds, state.contexts, strict=True):
            self.lessons.identify(slot, seed, context)
        at = torch.tensor(chosen)
        for name, value in self._held().items():
            value[at.to(self.device)] = state.tensors[name].to(value)
        self.update[at] = state.tensors["update"]
        self._looked[at] = -1
        self.failed[at] = state.tensors["failed"]
        for slot, reason in zip(chosen, state.reasons, strict=True):
            self.reasons[slot] = reason
        for flops, kept in zip(self.cost.parts, state.tensors["flops"].numpy().T, strict=True):
            flops[chosen] = kept

    def fork(self, slots: Sequence[int] | None = None) -> "DistillationProcess":
        """A new process that holds copies of these students (all by default; one may be named several times).

        It shares the data and the stores; what happens in it never reaches this one.
        """
        state = self.snapshot(slots)
        count = len(state.seeds)
        live = None if self.live is None else self.live.fork(count)
        other = DistillationProcess(
            self.train,
            self.lessons.teachers,
            self.init,
            self.recipe,
            count,
            self.device,
            self.dtype,
            live,
            len(self.train) - self.lessons.noisy,
        )
        other.restore(state)
        return other
