"""IKD: interactive knowledge distillation, "Learning to Teach with Student Feedback" (Liu et al., arXiv 2109.04641).

Only the abstract could be read: course steps teach the student on the teacher's soft targets, exam steps train the
teacher on what the taught student makes of an exam. All else here is a choice, and named as one.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F

from kd_gym.agents.feedback import Feedback, Lesson, TeacherGradient, gradient, held_out_gradient
from kd_gym.backend.encoder import Params
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.meta import norm, times
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Control


@dataclass(frozen=True)
class IKDConfig:
    """Settings of IKD."""

    every: int = 1
    """courses from one exam to the next"""
    radius: float | None = None
    """None: exact second derivatives; otherwise finite differences with eps = radius / |direction|"""
    teacher_rate: float = 1e-5
    """the teacher's learning rate, falling linearly to 0"""
    feedback: float = 0.5
    """b: the teacher steps along b of the exam's gradient, brought to the size of its own cross-entropy's on the exam,
    and 1 - b of that; exams alone (b = 1) can let a teacher collapse"""


class IKD(Feedback):
    """A tuned teacher that goes on learning from exams of its student.

    Course, on a batch of `train`: theta_S' = theta_S - u(grad [a tau^2 KL(p_T || p_S) + (1 - a) CE]), with a = 1/2 and
    the losses' scales. Exam, on a batch of `reward`: d CE(theta_S') / d theta_T, through the gradient of the course (a
    first-order form does not exist: the teacher reaches the exam in no other way). The student keeps theta_S': the
    teacher's step waits until the course is over.
    """

    Config = IKDConfig
    options: ClassVar = {"teacher": "live", "knowledge": "hard,response"}
    weights: ClassVar = {"hard": 0.5, "response": 0.5}

    def begin(self, env: Any) -> None:
        """Nothing waits at the start of an episode."""
        super().begin(env)
        self._waiting: tuple[Params, float] | None = None

    def teacher_gradient(
        self, process: DistillationProcess, live: LiveTeacher, control: Control, update: int
    ) -> TeacherGradient | None:
        """After the step that waited: what the exam of the coming course says."""
        if self._waiting is not None:
            live.step(*self._waiting)
            self._waiting = None
        if update % self.config.every:
            return None
        lesson = Lesson(process, live, control)
        ahead, (tokens, labels) = lesson.look_ahead(), self.held.batch(update)
        direction = times(ahead.pull, held_out_gradient(process, ahead.params, (tokens, labels)))
        influence = lesson.influences(direction, self.config.radius).mean()
        exam = lesson.back([-pull for pull in lesson.at_outputs(influence)])
        own = gradient(F.cross_entropy(live(tokens).logits[0], labels), live.params)
        self.spend(process, lesson.tokens, student=5, teacher=3)
        self.spend(process, tokens, student=3, teacher=3)
        ratio, b = norm(exam) / norm(own), self.config.feedback
        values = {name: b / ratio.clamp_min(1e-30) * exam[name] + (1 - b) * own[name] for name in own}
        return TeacherGradient(values, {"natural_ratio": float(ratio)})

    def teacher_step(self, live: LiveTeacher, gradients: Params, progress: float) -> None:
        """AdamW, once the student has made its own step."""
        self._waiting = gradients, self.config.teacher_rate * (1 - progress)
