"""The distillation process: N students in lockstep under the control of somebody else."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kd_gym.backend.encoder import Encoded, Params, add_rows, encode, forward_flops
from kd_gym.backend.optim import adamw_step, gradient_norms
from kd_gym.backend.sampling import Selection, choose, difficulties, quantile_scores
from kd_gym.backend.stack import StudentStack
from kd_gym.backend.state import Context, State
from kd_gym.backend.terms import Control, Evaluation, Forward, Trace
from kd_gym.tasks.tokens import Tokens

Hook = Callable[["DistillationProcess", Control], Control]
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


class DistillationProcess(StudentStack):
    """A stack of students that is trained, looked at, evaluated and forked.

    Attributes:
        hook: called before each update with the process and the control, until the next reset; it may train the live
            teachers and gives the control of this update.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook: Hook | None = None
        self._table_gradient = torch.zeros_like(self.params["word"], requires_grad=False)  # kept: fresh memory is slow
        self._ahead: Forward | None = None  # of the coming batch, where it was looked at
        self._looked = torch.full((self.students,), -1)  # the update whose pool each student has paid for

    def reset(self, seeds: Sequence[int], contexts: Sequence[Context], slots: Sequence[int] | None = None) -> None:
        """As in `StudentStack`; what was seen of coming batches is forgotten, and the hook is taken off."""
        self.hook = None
        super().reset(seeds, contexts, slots)
        self._forget(slots)

    def restore(self, state: State, slots: Sequence[int] | None = None) -> None:
        """As in `StudentStack`; what was seen of coming batches is forgotten."""
        super().restore(state, slots)
        self._forget(slots)

    def _forget(self, slots: Sequence[int] | None) -> None:
        self._ahead = None
        self._looked[slice(None) if slots is None else list(slots)] = -1

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
            ahead, self._ahead = self._ahead, None
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
            if self.live is not None:  # whose teachers may change before the update: the pass is made again
                self._ahead = None
                self.cost.student += batch.flops
        else:
            fresh, before = (self._looked != self.update).numpy(), self.cost.teacher.copy()
            with torch.no_grad():
                batch = self._forward(self.params, slots, drawn=self._rows(slots, count=pool))
            self.cost.student += batch.flops * fresh
            self.cost.teacher[~fresh] = before[~fresh]
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
