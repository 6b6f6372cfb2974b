"""What controllers share that train the teacher by what it does to its student: held-out batches, and a hook."""

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_gym.agents.protocol import Array, Controller
from kd_gym.backend.encoder import Dropout, Encoded, Params, forward_flops, keep
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.meta import Lookahead, look_ahead, norm, slope
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Control
from kd_gym.errors import KDGymError
from kd_gym.tasks.batches import Buckets, RowStream
from kd_gym.tasks.tokens import Tokens

PATIENCE = 3  # gradients in a row that are not finite before an episode ends


class HeldOut:
    """Labelled batches of the `reward` split, in an order that follows from the episode's seed."""

    def __init__(self, env: Any, batch: int) -> None:
        self.split = env.lab.data.split("reward").to(env.lab.device)
        seed = int(env.episodes.seed[0])
        self._stream = RowStream(Buckets(self.split.length, min(batch, len(self.split)), key=seed), seed, 1.0)

    def batch(self, update: int) -> tuple[Tokens, Tensor]:
        """Tokens [1, B, T] and labels [B] for an update."""
        rows, width = self._stream.rows(update)
        at = torch.from_numpy(rows).to(self.split.labels.device)
        return self.split.batch(at.unsqueeze(0), width), self.split.labels[at]


def gradient(loss: Tensor, p: Params) -> Params:
    """The gradient by every parameter, zeros where there is none."""
    return dict(zip(p, torch.autograd.grad(loss, list(p.values()), materialize_grads=True), strict=True))


def auxiliary(teacher: Tensor, student: Tensor, labels: Tensor, imitation: float) -> Tensor:
    """alpha_t KL(p_S || p_T) + (1 - alpha_t) CE(y, T), the student fixed: logits [N, B, C] of both -> mean."""
    p = student.detach().softmax(-1)
    apart = (p * (p.clamp_min(1e-12).log() - teacher.log_softmax(-1))).sum(-1).mean()
    return imitation * apart + (1 - imitation) * F.cross_entropy(teacher.flatten(0, 1), labels.flatten())


def held_out_gradient(
    process: DistillationProcess, params: Params, held: tuple[Tokens, Tensor], dropout: Dropout = keep
) -> Params:
    """d CE(held-out batch) / d params of the student with these parameters."""
    tokens, labels = held
    still = {name: value.detach().requires_grad_() for name, value in params.items()}
    return gradient(F.cross_entropy(process.encode(still, tokens, dropout).logits[0], labels), still)


class Lesson:
    """The coming batch, with the teacher's word on it twice: in the graph of its parameters, and cut loose from it.

    What a teacher is to be told about its outputs is gathered at the loose ends (`logits`, `cls`), and goes back
    through it once, by `back`.
    """

    def __init__(self, process: DistillationProcess, live: LiveTeacher, control: Control) -> None:
        self.process, self.live, self.control = process, live, control
        self.tokens, self.labels = process.coming()
        self._said = live(self.tokens, detail=process.detail)
        self.logits, self.cls = (part.detach().requires_grad_() for part in self._said[:2])
        self._taught = [process.lessons.matched(self._said._replace(logits=self.logits, cls=self.cls))]
        self.seen = process.encode(process.params, self.tokens)

    def losses(self, params: Params, seen: Encoded) -> Tensor:
        """The student's loss on each sample [B]."""
        return self.process.each(params, seen, self._taught, self.labels, self.control)[0]

    def student_gradient(self) -> Params:
        """The gradient of the student's coming step."""
        return gradient(self.losses(self.process.params, self.seen).mean(), self.process.params)

    def look_ahead(self) -> Lookahead:
        """The student's coming step, not made: with its own optimiser."""
        process = self.process
        recipe, rate = process.recipe, process.learning_rate()
        return look_ahead(process.params, self.student_gradient(), process.adam, rate, recipe.clip, recipe.decay)

    def influences(self, direction: Params, radius: float | None = None) -> Tensor:
        """<grad of each sample's loss, direction> [B], a function of the loose ends."""

        def losses(params: Params) -> Tensor:
            return self.losses(params, self.process.encode(params, self.tokens, plain=True))

        return slope(losses, self.process.params, direction, radius)

    def at_outputs(self, value: Tensor) -> list[Tensor]:
        """The gradient of a number by what the teacher says."""
        return list(torch.autograd.grad(value, [self.logits, self.cls], materialize_grads=True))

    def back(self, pulls: list[Tensor]) -> Params:
        """From gradients by what the teacher says to those by its parameters."""
        parameters = self.live.params
        found = torch.autograd.grad(self._said[:2], list(parameters.values()), pulls, materialize_grads=True)
        return dict(zip(parameters, found, strict=True))


def need_begin(controller: Controller, attribute: str) -> None:
    """Raise unless `begin` has set what a controller works with."""
    if not hasattr(controller, attribute):
        name = type(controller).__name__
        raise KDGymError(f"{name} works inside the env that it controls: call begin(env) after env.reset()")


class TeacherGradient(NamedTuple):
    """What a teacher is to step along, and what the log shows of it by name."""

    values: Params
    told: dict[str, float | list[float]]


class Feedback(Controller):
    """Base of controllers that train a live teacher before each update of its student.

    A subclass gives `teacher_gradient`. A gradient that is not finite is left out and counted; three in a row end the
    episode, with the reason in `info["failure"]`.
    """

    fits = ("KnowledgeSelect",)
    actions = ("weights",)
    options: ClassVar = {"teacher": "live"}
    reads_reward = True
    fixed = False
    weights: ClassVar[dict[str, float]] = {"response": 1.0}  # of the knowledge types, all through the episode

    def begin(self, env: Any) -> None:
        """Hook into the process of an env that holds one student."""
        process = env.episodes.process
        if process.live is None:
            raise KDGymError(
                f"{type(self).__name__} trains the teacher, and this env's is stored; make it with teacher="
                f"{self.options['teacher']!r}"
            )
        if process.students != 1:
            raise KDGymError(
                f"{type(self).__name__} trains the teacher of one student; this env has {process.students}"
            )
        self.held = HeldOut(env, self.recipe.process.batch)
        self._spent, self._bad, self._skipped = 0, 0, 0
        self._told: dict[str, list[Any]] = {}
        process.hook = self._before

    def act(self, observation: Array) -> Array:
        """The same weights always; what changes is the teacher."""
        need_begin(self, "held")
        top = max(self.weights.values())
        return np.array([2 * self.weights.get(name, 0.0) / top - 1 for name in self.family.labels], np.float32)

    def teacher_gradient(
        self, process: DistillationProcess, live: LiveTeacher, control: Control, update: int
    ) -> TeacherGradient | None:
        """The gradient that the teacher steps along before this update; None: it stays as it is."""
        raise NotImplementedError

    def teacher_step(self, live: LiveTeacher, gradients: Params, progress: float) -> None:
        """AdamW without decay before the student's step; its rate falls linearly."""
        live.step(gradients, self.config.teacher_rate * (1 - progress))

    def _before(self, process: DistillationProcess, control: Control) -> Control:
        assert process.live is not None
        update = int(process.update[0])
        found = self.teacher_gradient(process, process.live, control, update)
        if found is None:
            return control
        size = norm(found.values)
        if not bool(size.isfinite()):
            self._bad, self._skipped = self._bad + 1, self._skipped + 1
            if self._bad == PATIENCE:
                process.fail(0, f"the teacher's gradient was not finite {PATIENCE} times in a row")
            return control
        self._bad = 0
        for name, value in {"gradient_norm": float(size), **found.told}.items():
            self._told.setdefault(name, []).append(value)
        self.teacher_step(process.live, found.values, update / self.recipe.process.horizon)
        return control

    def auxiliary_gradient(self, process: DistillationProcess, live: LiveTeacher, part: Params) -> TeacherGradient:
        """The gradient of `auxiliary` on the coming batch by a part of the teacher's parameters."""
        tokens, labels = process.coming()
        student = process.encode(process.params, tokens).logits
        loss = auxiliary(live(tokens).logits, student, labels, self.config.imitation)
        whole = len(part) == len(live.params)  # the way back through a head alone is short
        self.spend(process, tokens, student=1, teacher=3 if whole else 1)
        return TeacherGradient(gradient(loss, part), {})

    def spend(self, process: DistillationProcess, tokens: Tokens, student: float = 0, teacher: float = 0) -> None:
        """Count passes over a batch: a forward pass is 1, with its backward pass 3, with its tangent 2."""
        assert process.live is not None
        batch, width = tokens.ids.shape[-2:]
        self._spent += round(student * forward_flops(process.init.arch, batch, width))
        self._spent += round(teacher * process.live.network.flops(batch, width, process.detail))

    def cost(self, decisions: int) -> int:
        """What was spent since `begin`, beside the student's own updates."""
        return self._spent

    def notes(self) -> dict[str, Any]:
        """What was logged at each step of the teacher, and how many of its gradients were left out."""
        return {**self._told, "skipped": self._skipped}
