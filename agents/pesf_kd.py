"""PESF-KD: parameter-efficient and student-friendly knowledge distillation (Rao et al., 2022; its abstract)."""

from dataclasses import dataclass
from typing import ClassVar

from kd_gym.agents.feedback import Feedback, TeacherGradient
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Control


@dataclass(frozen=True)
class PESFKDConfig:
    """Settings of PESF-KD."""

    teacher_rate: float = 1e-3
    """the head's learning rate, falling linearly to 0"""
    imitation: float = 0.5
    """weight of KL(p_S || p_T) beside the labels in the head's loss"""


class PESFKD(Feedback):
    """A tuned teacher whose head alone is trained, so that its soft targets come nearer to its student's.

    The paper trains an adapter; here it is the teacher's own head, pooler and classifier, for want of its details.
    """

    Config = PESFKDConfig
    options: ClassVar = {"teacher": "live", "knowledge": "hard,response", "tau": 1.0, "scales": False}
    weights: ClassVar = {"hard": 0.5, "response": 0.5}
    reads_reward = False

    def teacher_gradient(
        self, process: DistillationProcess, live: LiveTeacher, control: Control, update: int
    ) -> TeacherGradient:
        """The gradient by the head alone: the backward pass ends there."""
        head = {name: value for name, value in live.params.items() if name.startswith(("pooler", "classifier"))}
        return self.auxiliary_gradient(process, live, head)
