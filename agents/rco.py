"""RCO: route-constrained optimisation (Jin et al., ICCV 2019; recalled)."""

from dataclasses import replace
from typing import Any, ClassVar

from kd_gym.agents.feedback import need_begin
from kd_gym.agents.heuristics import FixedWeights
from kd_gym.agents.protocol import Array
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Control
from kd_gym.errors import KDGymError


class RCO(FixedWeights):
    """An early checkpoint of the teacher's training first, then the teacher.

    They change in the middle of the run. The paper's route has more stations; the teacher is kept at these two.
    """

    fits = ("KnowledgeSelect",)
    options: ClassVar = {"knowledge": "hard,response", "tau": 4.0, "scales": False}

    def begin(self, env: Any) -> None:
        """Load the early checkpoint's outputs, and choose between both before each update."""
        process: DistillationProcess = env.episodes.process
        self._begun = True
        if len(env.episodes.recipe.teachers[0].members) > 1:
            raise KDGymError("RCO follows one teacher's route")
        teachers = env.lab.teachers("early")
        process.lessons.teachers = {**process.lessons.teachers, "early": tuple(t.store for t in teachers)}
        own = process.lessons.contexts[0]

        def before(process: DistillationProcess, control: Control) -> Control:
            early = 2 * int(process.update[0]) < process.recipe.horizon
            process.lessons.contexts[0] = replace(own, teachers="early") if early else own
            return control

        process.hook = before

    def act(self, observation: Array) -> Array:
        """Labels and soft targets, half each."""
        need_begin(self, "_begun")
        return self._action({"hard": 0.5, "response": 0.5})
