"""DML: deep mutual learning (Zhang et al., CVPR 2018; recalled): two students that teach each other."""

from dataclasses import dataclass
from typing import Any, ClassVar

from kd_gym.agents.feedback import Feedback, TeacherGradient
from kd_gym.backend.encoder import Params
from kd_gym.backend.live import BertNetwork, LiveTeacher
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Control


@dataclass(frozen=True)
class DMLConfig:
    """Settings of DML."""

    imitation: float = 0.5
    """weight of the other's soft targets beside the labels in the peer's loss; the student's is one half"""


class DML(Feedback):
    """Two students that teach each other, and no tuned teacher.

    The second one has the same shape and another seed, and is trained on the same batches with the same loss:
    cross-entropy, and KL to the other's soft targets.
    """

    Config = DMLConfig
    options: ClassVar = {"teacher": "live", "knowledge": "hard,response", "tau": 1.0, "scales": False}
    weights: ClassVar = {"hard": 0.5, "response": 0.5}
    reads_reward = False

    def begin(self, env: Any) -> None:
        """A new peer for each episode, drawn from the student's seed."""
        process: DistillationProcess = env.episodes.process
        start = process.init.draw(process.lessons.seeds[0] + (1 << 41))  # another stream than the student's own
        names = dict.fromkeys(process.lessons.teachers, start)
        process.adopt(LiveTeacher(BertNetwork(process.init.arch), names, 1, device=process.device, dtype=process.dtype))
        super().begin(env)

    def teacher_gradient(
        self, process: DistillationProcess, live: LiveTeacher, control: Control, update: int
    ) -> TeacherGradient:
        """The peer's own loss on the coming batch."""
        self._rate = float(process.learning_rate()[0])
        return self.auxiliary_gradient(process, live, live.params)

    def teacher_step(self, live: LiveTeacher, gradients: Params, progress: float) -> None:
        """The peer's step, at the student's own rate."""
        live.step(gradients, self._rate, self.recipe.process.decay, self.recipe.process.clip)
