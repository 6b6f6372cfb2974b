"""LGTM: Learning Good Teacher Matters (Ren et al., ACL 2023, arXiv 2305.09651).

The teacher is trained beside the student, so that a step of distillation on a batch helps on a held-out one. The
held-out batches come from `reward`; the released code takes them from the set that it reports on.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from kd_gym.agents.feedback import (
    Feedback,
    HeldOut,
    Lesson,
    TeacherGradient,
    auxiliary,
    gradient,
    held_out_gradient,
    need_begin,
)
from kd_gym.agents.protocol import Array, Controller
from kd_gym.backend.encoder import Params, forward_flops
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.meta import dropout_of, look_ahead, norm, slope, times
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Control


@dataclass(frozen=True)
class LGTMConfig:
    """Settings of LGTM."""

    mode: Literal["corrected", "faithful"] = "corrected"
    """corrected: the mathematics of the paper; faithful: the formulas of the released code"""
    radius: float | None = None
    """None: exact second derivatives; otherwise finite differences with eps = radius / |direction|, as in the released
    code (0.01, which the faithful mode has by default)"""
    influence: float = 1.0
    """corrected mode: weight of the influence beside the auxiliary gradient, in units of the latter's size"""
    teacher_rate: float = 1e-4
    """the teacher's learning rate, falling linearly to 0 (the paper's 3e-5 is for BERT-base and whole epochs)"""
    imitation: float = 0.4
    """alpha_t: the teacher's auxiliary loss is alpha_t KL(p_S || p_T) + (1 - alpha_t) CE"""
    dropout: float = 0.1
    """faithful mode: dropout of both in the passes where the released code trains"""


class LGTM(Feedback):
    """Teacher and student start with heads of zeros, the teacher untuned; the student learns from soft targets alone.

    Each update: the student looks one step of its own optimiser ahead, the held-out loss there says in which direction
    v its parameters should go, and the teacher steps along

        grad_T L_aux - influence * (d2 L_KD / d theta_T d theta_S) (lr P v)

    (P: the optimiser's preconditioner). `corrected` differences the student's own loss KL(p_T || p_S) and scales the
    second term to a part of the first at the teacher's logits; its natural size (`natural_ratio` in the notes) is far
    from steady.
    `faithful` is the released code: it differences the teacher's loss with KL(p_S || p_T), along v without P, scales
    it by the teacher's learning rate, and has dropout on in the auxiliary loss, the look-ahead and the held-out loss.
    """

    Config = LGTMConfig
    options: ClassVar = {"teacher": "untuned", "knowledge": "hard,response", "tau": 1.0, "scales": False}

    def teacher_gradient(
        self, process: DistillationProcess, live: LiveTeacher, control: Control, update: int
    ) -> TeacherGradient:
        """The auxiliary gradient less the influence."""
        faithful = self.config.mode == "faithful"
        return (self._faithful if faithful else self._corrected)(process, live, control, update)

    def _corrected(
        self, process: DistillationProcess, live: LiveTeacher, control: Control, update: int
    ) -> TeacherGradient:
        lesson = Lesson(process, live, control)
        ahead, held = lesson.look_ahead(), self.held.batch(update)
        direction = times(ahead.pull, held_out_gradient(process, ahead.params, held))
        influences = lesson.influences(direction, self.config.radius)
        helps = lesson.at_outputs(influences.mean())
        keeps = lesson.at_outputs(auxiliary(lesson.logits, lesson.seen.logits, lesson.labels, self.config.imitation))
        ratio = norm(dict(enumerate(helps))) / norm(dict(enumerate(keeps)))
        factor = self.config.influence / ratio.clamp_min(1e-30)
        self.spend(process, lesson.tokens, student=5, teacher=3)
        self.spend(process, held[0], student=3)
        values = lesson.back([kept - factor * wanted for kept, wanted in zip(keeps, helps, strict=True)])
        return TeacherGradient(values, {"natural_ratio": float(ratio), "influences": influences.tolist()})

    def _faithful(
        self, process: DistillationProcess, live: LiveTeacher, control: Control, update: int
    ) -> TeacherGradient:
        tokens, labels = process.coming()
        config, recipe = self.config, self.recipe.process
        drop = [dropout_of(config.dropout, process.lessons.seeds, update, stream) for stream in range(3)]
        said, seen = live(tokens, dropout=drop[0]), process.encode(process.params, tokens, drop[1])
        fixed = process.lessons.matched(said._replace(logits=said.logits.detach(), cls=said.cls.detach()))
        loss = process.each(process.params, seen, [fixed], labels, control).mean()
        rate = process.learning_rate()
        own = gradient(loss, process.params)
        ahead = look_ahead(process.params, own, process.adam, rate, recipe.clip, recipe.decay)
        keeps = gradient(auxiliary(said.logits, seen.logits, labels, config.imitation), live.params)
        held = self.held.batch(update)
        v = held_out_gradient(process, ahead.params, held, drop[2])
        logits = live(tokens).logits

        def teaching(params: Params) -> Tensor:
            return auxiliary(logits, process.encode(params, tokens).logits, labels, config.imitation)

        helps = gradient(slope(teaching, process.params, v, config.radius or 0.01), live.params)
        scale = config.teacher_rate * (1 - update / recipe.horizon)
        self.spend(process, tokens, student=5, teacher=6)
        self.spend(process, held[0], student=3)
        values = {name: keeps[name] - scale * helps[name] for name in keeps}
        return TeacherGradient(values, {"natural_ratio": float(scale * norm(helps) / norm(keeps))})


class LGTMPriority(Controller):
    """LGTM's distillation influence as the priority of samples: I_i = <grad L(x_i), grad L_held-out>.

    Each candidate of the pool is scored by how much a step on it lowers the loss on a held-out batch, to first order;
    candidates that would raise it get score 0. The teacher is stored, and stays as it is.
    """

    fits = ("SamplePriority",)
    actions = ("weights",)
    options: ClassVar = {"granularity": "instance"}
    reads_reward = True

    def begin(self, env: Any) -> None:
        """Keep the env, whose student is looked at."""
        self._env, self._spent = env, 0
        self._held = HeldOut(env, self.recipe.process.batch)

    def act(self, observation: Array) -> Array:
        """The candidates' influences, scaled to the largest."""
        need_begin(self, "_env")
        process: DistillationProcess = self._env.episodes.process
        tokens, labels = process.coming(self.family.pool)  # type: ignore[attr-defined]
        seen = process.peek(self.family.pool)  # type: ignore[attr-defined]
        control = self.family.uniform(1)
        held = self._held.batch(int(process.update[0]))
        v = held_out_gradient(process, process.params, held)

        def distilled(params: Params) -> Tensor:
            return process.each(params, process.encode(params, tokens, plain=True), seen.teachers, labels, control)[0]

        with torch.no_grad():
            influences = slope(distilled, process.params, v).clamp_min(0).cpu().numpy()
        for batch, passes in ((tokens, 2), (held[0], 3)):
            self._spent += passes * forward_flops(process.init.arch, *batch.ids.shape[-2:])
        return np.asarray(2 * influences / max(float(influences.max()), 1e-12) - 1, np.float32)

    def cost(self, decisions: int) -> int:
        """What was spent since `begin`, beside the student's own updates."""
        return self._spent
