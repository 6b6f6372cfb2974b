"""MetaDistil: BERT Learns to Teach (Zhou, Xu, McAuley, ACL 2022), from its released code."""

from dataclasses import dataclass
from typing import ClassVar

from kd_gym.agents.feedback import Feedback, Lesson, TeacherGradient, held_out_gradient
from kd_gym.backend.encoder import Params
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.meta import sgd_ahead, times
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Control


@dataclass(frozen=True)
class MetaDistilConfig:
    """Settings of MetaDistil."""

    pilot_rate: float = 5e-5
    """step of the pilot update, which is plain gradient descent"""
    teacher_rate: float = 1e-5
    """the teacher's learning rate, falling linearly to 0"""
    clip: float = 1.0
    """the largest norm of the teacher's gradient"""
    radius: float | None = None
    """None: exact second derivatives; otherwise finite differences with eps = radius / |direction|"""


class MetaDistil(Feedback):
    """Pilot update, quiz, and the update again under the better teacher.

    A copy of the student takes a plain step on the batch; the teacher steps down the copy's cross-entropy on a quiz
    batch of `reward`, through that step; then the student itself takes its own step with the new teacher. The
    student's loss: half cross-entropy, half tau^2 times the squared distance of softened probabilities, tau = 5, and
    the [CLS] states of all its layers but the last (PKD, beta 100).
    The teacher is told nothing else, and the quiz is one batch, not the whole set.
    """

    Config = MetaDistilConfig
    options: ClassVar = {"teacher": "live", "knowledge": "hard,soft-mse,cls-skip", "tau": 5.0, "scales": False}
    weights: ClassVar = {"hard": 0.5, "soft-mse": 0.5, "cls-skip": 100.0}

    def teacher_gradient(
        self, process: DistillationProcess, live: LiveTeacher, control: Control, update: int
    ) -> TeacherGradient:
        """d quiz / d teacher, through the pilot update."""
        lesson, quiz = Lesson(process, live, control), self.held.batch(update)
        ahead = sgd_ahead(process.params, lesson.student_gradient(), self.config.pilot_rate)
        direction = times(ahead.pull, held_out_gradient(process, ahead.params, quiz))
        influence = lesson.influences(direction, self.config.radius).mean()
        self.spend(process, lesson.tokens, student=5, teacher=3)
        self.spend(process, quiz[0], student=3)
        return TeacherGradient(lesson.back([-pull for pull in lesson.at_outputs(influence)]), {})

    def teacher_step(self, live: LiveTeacher, gradients: Params, progress: float) -> None:
        """AdamW before the student's step; its rate falls linearly."""
        live.step(gradients, self.config.teacher_rate * (1 - progress), clip=self.config.clip)
