"""The distillation process: N students in lockstep under the control of somebody else."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kd_gym.backend.encoder import Params, add_rows, clear_rows, encode, forward_flops, rows_norm
from kd_gym.backend.optim import AdamWState, adamw_step, gradient_norms
from kd_gym.backend.sampling import Selection, choose, difficulties, quantile_scores
from kd_gym.backend.stack import StudentStack
from kd_gym.backend.state import Context, State
from kd_gym.backend.terms import Control, Evaluation, Forward, Seen, Trace
from kd_gym.backend.threads import in_threads
from kd_gym.tasks.tokens import Tokens

Hook = Callable[["DistillationProcess", Control], Control]
PROCESS_VERSION = 5  # a part of every kept score's key: raise it when a change here moves a student's numbers


class Part(NamedTuple):
    """Students that are trained by one thread: which, and their share of parameters, by name and as they lie (see
    `Layout`), of moments, and of what gradients are gathered in (kept, because fresh memory is slow; the word table's
    is zero between updates).
    """

    slots: range
    params: Params
    packed: Params
    adam: AdamWState
    gradients: Params


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


def _mean(traces: Sequence[Trace]) -> Trace:
    return Trace(*(torch.stack(column).mean(0).float().cpu() for column in zip(*traces, strict=True)))


class DistillationProcess(StudentStack):
    """A stack of students that is trained, looked at, evaluated and forked.

    Attributes:
        hook: called before each update with the process and the control, until the next reset; it may train the live
            teachers and gives the control of this update.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook: Hook | None = None
        self._parted: dict[int, list[Part]] = {}
        kept = self.layout.zeros(self.students, self.dtype, self.device)
        self._gradients = {name: kept[name] for name in (*self.layout.groups, "word")}
        self._ahead: dict[range, Forward] = {}  # of the coming batch by part, where it was looked at
        self._looked = torch.full((self.students,), -1)  # the update whose pool each student has paid for

    def reset(self, seeds: Sequence[int], contexts: Sequence[Context], slots: Sequence[int] | None = None) -> None:
        """As in `StudentStack`; what was seen of coming batches is forgotten, and the hook is taken off."""
        self.hook = None
        with self.cost.timed("student"):
            super().reset(seeds, contexts, slots)
        self._forget(slots)

    def restore(self, state: State, slots: Sequence[int] | None = None) -> None:
        """As in `StudentStack`; what was seen of coming batches is forgotten."""
        super().restore(state, slots)
        self._forget(slots)

    def _forget(self, slots: Sequence[int] | None) -> None:
        self._ahead = {}
        self._looked[slice(None) if slots is None else list(slots)] = -1

    def _parts(self, count: int) -> list[Part]:
        """The students in `count` parts."""
        if count not in self._parted:
            bounds = [self.students * i // count for i in range(count + 1)]
            self._parted[count] = [self._part(range(*pair)) for pair in itertools.pairwise(bounds)]
        return self._parted[count]

    def _part(self, slots: range) -> Part:
        def own(group: Params) -> Params:
            return {name: value[slots.start : slots.stop] for name, value in group.items()}

        packed, moments = own(self.packed), self.packed_adam
        if len(slots) == self.students:  # the leaves of passes over everybody
            params = self.params
        else:
            params = {name: value.requires_grad_() for name, value in self.layout.views(packed).items()}
        adam = AdamWState(own(moments.mean), own(moments.square), moments.step[slots.start : slots.stop])
        return Part(slots, params, packed, adam, own(self._gradients))

    def _back(self, total: Tensor, batch: Forward, part: Part) -> tuple[Params, Tensor]:
        """The gradients as parameters lie, and their norm [n]; that of the word table stands until `clear_rows`."""
        wanted = part.params | {"word": batch.encoded.word}
        found = torch.autograd.grad(total, list(wanted.values()), materialize_grads=True)
        by_name, table = dict(zip(wanted, found, strict=True)), part.gradients["word"]
        gradients, rows = self.layout.pack(by_name, part.gradients), by_name["word"]
        add_rows(table, batch.ids, rows)
        return gradients, gradient_norms(gradients | {"word": rows_norm(table, batch.ids, rows).unsqueeze(1)})

    def _step(self, part: Part, batch: Forward, weights: Tensor) -> Trace:
        """One update of a part's students after its forward pass; `weights` [n, K, M, B or 1] are those of losses."""
        slots = slice(part.slots.start, part.slots.stop)
        total = (weights * batch.losses).sum((1, 2)).mean(-1)
        gradients, norms = self._back(total.sum(), batch, part)
        norms = torch.where(total.detach().isfinite(), norms, torch.nan)
        for place in (~norms.isfinite().cpu()).nonzero().flatten().tolist():
            self.fail(part.slots[place], "the student's loss or gradient is not finite")
        norms = torch.where(self.failed[slots].to(norms.device), torch.nan, norms)
        rates = self.learning_rate()[slots]
        adamw_step(part.packed, gradients, part.adam, rates, norms, self.recipe.clip, self.recipe.decay)
        clear_rows(part.gradients["word"], batch.ids)
        self.update[slots] += 1
        self.cost.student[slots] += 3 * batch.flops  # the backward pass costs two forward passes
        return _trace(batch, norms)

    def _apart(self) -> list[Part]:
        """As many parts as there are students and threads for, on a CPU; one elsewhere, where kernels take all, and
        where a live teacher or a hook is asked about all students together.
        """
        alone = self.device.type != "cpu" or self.live is not None or self.hook is not None
        return self._parts(1 if alone else min(self.students, torch.get_num_threads()))

    def advance(self, control: Control, updates: int) -> Trace:
        """Train every student for so many updates under one control.

        A student whose loss or gradient is not finite is marked in `failed` [N] and stays as it was before.
        """
        weights = self.weights(control)

        def train(part: Part) -> Trace:
            return _mean([self._train(part, control, weights) for _ in range(updates)])

        with self.cost.timed("student"):
            traces = in_threads(train, self._apart())
        self._ahead = {}
        return Trace(*(torch.cat(column) for column in zip(*traces, strict=True)))

    def _train(self, part: Part, control: Control, weights: Tensor) -> Trace:
        """One update of a part's students under a control, which a hook may change; `weights` are the control's."""
        if self.hook is not None:
            with self.cost.timed("controller"):
                control = self.hook(self, control)
                weights = self.weights(control)
        weights = weights[part.slots.start : part.slots.stop]
        drawn = None
        if control.selection is not None:
            drawn, factor = self._select(control.selection, part)
            weights = weights * factor
        ahead = self._ahead.pop(part.slots, None)
        batch = self._forward(part.params, part.slots, drawn=drawn) if drawn or not ahead else ahead
        return self._step(part, batch, weights)

    @torch.no_grad()
    def _select(self, selection: Selection, part: Part) -> tuple[tuple[Tensor, list[int]], Tensor]:
        """The rows chosen for a part's coming update with their widths, and the factor [n, 1, 1, B] of their losses."""
        own = slice(part.slots.start, part.slots.stop)
        rows, widths = self._rows(part.slots, count=selection.pool)
        scores = selection.scores[own].to(self.device)
        if scores.dim() == 3:
            pool = self._forward(part.params, part.slots, drawn=(rows, widths))
            self.cost.student[own] += pool.flops
            measures = difficulties(pool.encoded.logits, pool.teachers[0], pool.labels)
            scores = quantile_scores(measures, scores)
        keys = list(zip(self.lessons.seeds[own], self.update[own].tolist(), strict=True))
        places, weights = choose(selection, scores, self.recipe.batch, keys)
        return (rows.gather(-1, places), widths), weights.to(self.scale)[:, None, None]

    def peek(self, pool: int | None = None) -> Seen:
        """What students and teachers make of the batch that is trained on next, or of a pool of candidates for it.

        The coming update takes over the pass over its batch, so that it costs nothing more; one over a pool does.
        """
        parts = self._apart()

        def ahead(part: Part) -> Forward:
            return self._ahead.get(part.slots) or self._forward(part.params, part.slots)

        @torch.no_grad()
        def candidates(part: Part) -> Forward:
            return self._forward(part.params, part.slots, drawn=self._rows(part.slots, count=pool))

        before = self.cost.teacher.copy()
        with self.cost.timed("student"):
            passes = in_threads(ahead if pool is None else candidates, parts)
        flops = np.concatenate([one.flops for one in passes])
        if pool is not None:
            fresh = (self._looked != self.update).numpy()
            self.cost.student += flops * fresh
            self.cost.teacher[~fresh] = before[~fresh]
            self._looked = self.update.clone()
        elif self.live is not None:  # whose teachers may change before the update: the pass is made again
            self.cost.student += flops
        else:
            self._ahead = {part.slots: one for part, one in zip(parts, passes, strict=True)}
        return Seen.of(passes)

    def review(self) -> tuple[Tensor, Tensor]:
        """On the batch of the last update, after it: cross-entropy with the labels, and tau^2 KL of the students from
        the mean of all teachers' soft targets, each [N].
        """

        @torch.no_grad()
        def again(part: Part) -> Forward:
            return self._forward(part.params, part.slots, -1)

        with self.cost.timed("student"):
            passes = in_threads(again, self._apart())
        self.cost.student += np.concatenate([one.flops for one in passes])
        seen, tau = Seen.of(passes), self.recipe.tau
        log_p = (seen.logits / tau).log_softmax(-1)
        mean = torch.stack([(teacher.logits / tau).softmax(-1) for teacher in seen.teachers]).mean(0)
        soft = tau**2 * (mean * (mean.clamp_min(1e-9).log() - log_p)).sum(-1).mean(-1)
        chosen = seen.logits.log_softmax(-1).gather(-1, seen.labels.unsqueeze(-1))
        return -chosen.mean((1, 2)), soft

    @torch.no_grad()
    def evaluate(
        self, batches: Sequence[tuple[Tokens, Tensor]], charged: NDArray[np.bool_] | None = None
    ) -> Evaluation:
        """All students on the same rows (`TokenSplit.batches` of a split), without gradients.

        The cost goes to the students that are `charged` [N] (all by default): those that asked for it.
        """

        @torch.no_grad()
        def look(part: Part) -> Tensor:  # logits [n, rows, C]
            encoded = [encode(part.params, self.init.arch, tokens, self.recipe.attention) for tokens, _ in batches]
            return torch.cat([each.logits for each in encoded], 1)

        flops = sum(forward_flops(self.init.arch, *tokens.ids.shape[-2:]) for tokens, _ in batches)
        self.cost.evaluation += flops if charged is None else charged * flops
        with self.cost.timed("evaluation"):
            logits = torch.cat(in_threads(look, self._apart()))
            labels = torch.cat([target for _, target in batches])
            loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(self.students), reduction="none")
            predicted = logits.argmax(-1)
            right = (predicted == labels).float().mean(1)
            return Evaluation(loss.view(self.students, -1).mean(1).float().cpu(), right.cpu(), predicted.cpu())

    def fork(self, slots: Sequence[int] | None = None) -> "DistillationProcess":
        """A new process that holds copies of these students (all by default; one may be named several times).

        It shares the data and the stores; what happens in it never reaches this one. It has no hook.
        """
        state = self.snapshot(slots)
        count = len(state.seeds)
        own = None if self._own is None else self._own.fork(count)
        other = DistillationProcess(
            self.train,
            self.lessons.teachers,
            self.init,
            self.recipe,
            count,
            self.device,
            self.dtype,
            own,
            len(self.train) - self.lessons.noisy,
        )
        if self.live is not None and self.live is not self._own:
            other.adopt(self.live.fork(count))
        other.restore(state)
        return other
