"""Dynamic KD: three closed-form controls by the student's uncertainty (Li et al., EMNLP 2021)."""

from typing import ClassVar

import numpy as np

from kd_gym.agents.protocol import Array, Controller
from kd_gym.errors import KDGymError


class DynamicKD(Controller):
    """Let u = H(p_S) / log C, the student's uncertainty.

    - `TeacherWeight` (teacher selection, soft): weight u to the second teacher and 1 - u to the first. The paper's
      second one is smaller, and so is that of the ids that have MiniLM teachers.
    - `SamplePriority` (data selection): train on the candidates of highest u.
    - `KnowledgeSelect` (objective): labels 1, soft targets 1 - u, features u, with the batch's mean u.
    """

    actions = ("weights",)
    fits = ("TeacherWeight", "SamplePriority", "KnowledgeSelect")
    options: ClassVar = {"granularity": "instance", "select": "top"}

    def act(self, observation: Array) -> Array:
        """The action of the family that the env is of."""
        if "student_entropy" in {feature.name for feature in self.features}:
            return np.asarray(2 * self.see(observation, "student_entropy")[:, 0] - 1, np.float32)
        if observation.ndim == 2:
            if len(self.family.labels) < 2:
                raise KDGymError("dynamic-kd chooses between two teachers; this env has one")
            student = self.see(observation, "student").astype(np.float64)
            entropy = -(student * np.log(np.maximum(student, 1e-9))).sum(1) / np.log(student.shape[1])
            weights = np.zeros(self.action_space.shape or ())
            weights[:, 1] = entropy.clip(0, 1)  # rounding may take it past 1
            weights[:, 0] = 1 - weights[:, 1]
            return np.asarray(2 * weights - 1, np.float32)
        u = float(self.see(observation, "entropy")[0])
        wanted = {"hard": 1.0, "response": 1 - u, "feature": u}
        return np.array([2 * wanted.get(name, 0.0) - 1 for name in self.family.labels], np.float32)
