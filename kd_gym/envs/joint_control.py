"""JointControl: knowledge types, teachers and samples in one action."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces

from kd_gym.backend.sampling import Selection
from kd_gym.backend.terms import Control
from kd_gym.envs.episodes import Episodes
from kd_gym.envs.faces import DistillationEnv, DistillationVectorEnv
from kd_gym.envs.family import Decision, Family, Weights, equal_knowledge, simplex
from kd_gym.envs.recipes import Origin, recipe_of
from kd_gym.envs.sample_priority import POOL, quantile_labels, quantile_weights
from kd_gym.plugins import check_choice

ActionKind = Literal["weights", "dict"]


class JointControl(Family):
    """Weights over K knowledge types, M teachers and the quantiles of three measures of difficulty."""

    selects = True

    def __init__(self, origin: Origin, action: ActionKind = "weights") -> None:
        super().__init__(recipe_of(origin, several=True))
        check_choice("action kind", action, ActionKind)
        self.action = action
        self.pool = POOL * self.recipe.process.batch
        self.parts = {
            "knowledge": self.recipe.process.knowledge,
            "teachers": self.recipe.teacher_names(),
            "samples": quantile_labels(),
        }

    @property
    def labels(self) -> tuple[str, ...]:
        """Knowledge types, teachers, quantiles."""
        return tuple(name for part in self.parts.values() for name in part)

    @property
    def action_space(self) -> spaces.Space[Any]:
        """One box over all, or a dict of three."""
        if self.action == "weights":
            return spaces.Box(-1.0, 1.0, (len(self.labels),), np.float32)
        return spaces.Dict({name: spaces.Box(-1.0, 1.0, (len(part),), np.float32) for name, part in self.parts.items()})

    def decide(self, actions: Sequence[Any], episodes: Episodes) -> Decision:
        """All of the control."""
        if self.action == "weights":
            ends = np.cumsum([len(part) for part in self.parts.values()])[:-1]
            knowledge, teachers, samples = np.split(np.stack(actions), ends, axis=1)
        else:
            knowledge, teachers, samples = (np.stack([action[name] for action in actions]) for name in self.parts)
        what, whom, which = simplex(knowledge), simplex(teachers), quantile_weights(samples)
        control = Control(torch.from_numpy(what), torch.from_numpy(whom), selection=Selection(which, self.pool))
        shown = np.concatenate([what, whom, which.flatten(1).numpy()], axis=1)
        return Decision(control, shown, np.zeros(len(shown), np.int64))

    def uniform(self, count: int) -> Control:
        """All knowledge types and teachers alike, and a plain draw out of the same pools."""
        selection = Selection(torch.ones(count, self.pool), self.pool)
        return Control(equal_knowledge(count, self.recipe), selection=selection)

    def initial(self) -> Weights:
        """Each part uniform."""
        knowledge, teachers, samples = (len(part) for part in self.parts.values())
        return np.concatenate(
            [np.full(knowledge, 1 / knowledge), np.full(teachers, 1 / teachers), np.full(samples, 0.5)]
        )


class JointControlEnv(DistillationEnv):
    """Choose knowledge types, teachers and samples together.

    ## Description
    The whole of the loss in one action: what the student learns, from whom, and on which samples. It is the union of
    `KnowledgeSelect`, `TeacherWeight` and `SamplePriority` at batch granularity, with the same contexts.

    ## Action space
    | `action` | space | meaning |
    |---|---|---|
    | `weights` (default) | Box [-1, 1]^(K + M + 12) | the three parts below, one after the other |
    | `dict` | Dict | `knowledge`: Box [-1, 1]^K, `teachers`: Box [-1, 1]^M, `samples`: Box [-1, 1]^12 |

    Knowledge and teacher weights are (a + 1) / 2 divided by their sum (all at -1: uniform); samples are drawn as in
    `SamplePriority`.

    ## Observation space
    A bounded float32 vector.

    {observations}

    ## Reward
    As in `KnowledgeSelect`.

    ## Episode start and end
    `reset(seed)` fixes first weights, data order, label noise and context. The episode terminates when the budget of
    updates is spent or the student diverges (`info["failure"]`). It never truncates.

    ## Arguments
    `action`, `teachers`, and those of every env: `observation`, `reward`, `reward_every`, `context`, `rows`,
    `knowledge`, `tau`, `scales`, `student`, `learning_rate`, `horizon`, `precision`, `data`, `device`, `backend`,
    `render_mode` (docs/environments.md).

    ## Version history
    v0: first release.
    """

    Family = JointControl


class JointControlVectorEnv(DistillationVectorEnv):
    """`JointControlEnv` for N students on one device."""

    Family = JointControl
