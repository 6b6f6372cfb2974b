"""ProKT: progressive knowledge teaching, in the form that LGTM's released code gives it (its `--train_teacher`)."""

from dataclasses import dataclass
from typing import ClassVar

from kd_gym.agents.feedback import Feedback, TeacherGradient
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Control


@dataclass(frozen=True)
class ProKTConfig:
    """Settings of ProKT."""

    teacher_rate: float = 1e-4
    """the teacher's learning rate, falling linearly to 0"""
    imitation: float = 0.4
    """alpha_t: the teacher's loss is alpha_t KL(p_S || p_T) + (1 - alpha_t) CE"""


class ProKT(Feedback):
    """LGTM without its influence.

    An untuned teacher learns the labels and is pulled towards its student, which learns from its soft targets alone.
    """

    Config = ProKTConfig
    options: ClassVar = {"teacher": "untuned", "knowledge": "hard,response", "tau": 1.0, "scales": False}
    reads_reward = False

    def teacher_gradient(
        self, process: DistillationProcess, live: LiveTeacher, control: Control, update: int
    ) -> TeacherGradient:
        """d [alpha_t KL(p_S || p_T) + (1 - alpha_t) CE] / d teacher on the coming batch."""
        return self.auxiliary_gradient(process, live, live.params)
