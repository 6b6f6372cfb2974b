"""TAKD: distillation by way of a teacher assistant (Mirzadeh et al., AAAI 2020; recalled)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kd_gym.agents.feedback import gradient, need_begin
from kd_gym.agents.heuristics import FixedWeights
from kd_gym.agents.protocol import Array
from kd_gym.backend.checkpoint import cut_layers
from kd_gym.backend.encoder import forward_flops
from kd_gym.backend.live import BertNetwork, LiveTeacher
from kd_gym.backend.process import DistillationProcess
from kd_gym.errors import KDGymError


@dataclass(frozen=True)
class TAKDConfig:
    """Settings of TAKD."""

    layers: int | None = None
    """of the assistant, which is as wide as the teacher and starts from its layers; None: halfway to the student"""
    rate: float = 1e-4
    """the assistant's learning rate, falling linearly to 0"""


class TAKD(FixedWeights):
    """A teacher's assistant, between teacher and student in size, in the teacher's place.

    Before the episode it is distilled from the teacher, on the batches that the student will see, with half soft
    targets and half labels. Its training is counted as the controller's cost.
    """

    Config = TAKDConfig
    fits = ("KnowledgeSelect",)
    options: ClassVar = {"teacher": "live", "knowledge": "hard,response", "tau": 4.0, "scales": False}

    def begin(self, env: Any) -> None:
        """Train the assistant, and put it in the teacher's place."""
        process: DistillationProcess = env.episodes.process
        teacher = process.live
        if teacher is None or not isinstance(teacher.network, BertNetwork):
            raise KDGymError("TAKD cuts its assistant out of a BERT teacher; this one is of another family")
        if process.init.arch.layers >= teacher.depth:
            raise KDGymError(
                f"there is no room for an assistant: the student has {teacher.depth} layers, as its teacher"
            )
        depth = self.config.layers or (process.init.arch.layers + teacher.depth) // 2
        if not process.init.arch.layers <= depth < teacher.depth:
            raise KDGymError(
                f"an assistant has {process.init.arch.layers} to {teacher.depth - 1} layers here, not {depth}"
            )
        network = BertNetwork(replace(teacher.network.arch, layers=depth))
        starts = {name: cut_layers(teacher.start(name), depth, teacher.depth) for name in process.lessons.teachers}
        assistant = LiveTeacher(network, starts, 1, False, process.device, process.dtype, teacher.precision)
        assistant.reset(0, process.lessons.contexts[0].teachers)
        process.adopt(assistant)
        tau, horizon = self.recipe.process.tau, self.recipe.process.horizon
        self._spent = 0
        for update in range(horizon):
            rows, widths = process.lessons.rows([0], [update])
            tokens, labels = process.train.batch(rows, max(widths)), process.lessons.labels_of([0], rows)
            target = (process.lessons.teach([0], rows)[0].logits / tau).softmax(-1)
            logits = assistant(tokens).logits
            soft = tau**2 * (target * (target.clamp_min(1e-9).log() - (logits / tau).log_softmax(-1))).sum(-1).mean()
            hard = -logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).mean()
            assistant.step(gradient((soft + hard) / 2, assistant.params), self.config.rate * (1 - update / horizon))
            self._spent += 3 * forward_flops(network.arch, *tokens.ids.shape[-2:])

    def act(self, observation: Array) -> Array:
        """Labels and the assistant's soft targets, half each."""
        need_begin(self, "_spent")
        return self._action({"hard": 0.5, "response": 0.5})

    def cost(self, decisions: int) -> int:
        """What the assistant's training took."""
        return self._spent
