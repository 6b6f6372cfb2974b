"""KnowledgeSelect: which kinds of knowledge the student learns from, over its training."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces

from kd_gym.backend.terms import Control
from kd_gym.envs.episodes import Episodes
from kd_gym.envs.faces import DistillationEnv, DistillationVectorEnv
from kd_gym.envs.family import Decision, Family, normalised, simplex
from kd_gym.envs.recipes import Origin, recipe_of
from kd_gym.plugins import check_choice

ActionKind = Literal["weights", "multi", "choice"]


class KnowledgeSelect(Family):
    """The three kinds of action over K knowledge types."""

    def __init__(self, origin: Origin, action: ActionKind = "weights") -> None:
        super().__init__(recipe_of(origin))
        check_choice("action kind", action, ActionKind)
        self.action = action
        self.k = len(self.recipe.process.knowledge)

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Box [-1, 1]^K, MultiBinary(K) or Discrete(K)."""
        if self.action == "weights":
            return spaces.Box(-1.0, 1.0, (self.k,), np.float32)
        return spaces.MultiBinary(self.k) if self.action == "multi" else spaces.Discrete(self.k)

    @property
    def labels(self) -> tuple[str, ...]:
        """The knowledge types."""
        return self.recipe.process.knowledge

    def decide(self, actions: Sequence[Any], episodes: Episodes) -> Decision:
        """Knowledge weights that sum to 1; an empty hard selection keeps the control before."""
        given = np.stack(actions)
        empty = np.zeros(len(given), np.bool_)
        if self.action == "choice":
            weights = np.eye(self.k)[given]
        elif self.action == "weights":
            weights = simplex(given)
        else:
            weights, empty = normalised(given.astype(np.float64))
            weights = np.where(empty[:, None], episodes.control, weights)
        return Decision(Control(torch.from_numpy(weights)), weights, empty.astype(np.int64))


class KnowledgeSelectEnv(DistillationEnv):
    """Choose how much the student learns from labels, soft targets, features and relations.

    ## Description
    A small student is distilled from a fine-tuned teacher. Every decision sets the weights of the knowledge types for
    the next updates; the episode is one whole distillation. Which weights are best depends on facts that the
    observation does not tell: how noisy the labels are, how good the teacher is, how much data there is (the
    *context*). A controller can infer them from how losses and agreement move, and adapt.

    ## Action space
    | `action` | space | meaning |
    |---|---|---|
    | `weights` (default) | Box [-1, 1]^K | w = (a + 1) / 2, divided by its sum; all at -1 is uniform |
    | `multi` | MultiBinary(K) | the selected types in equal parts; none: the control before stays, and is counted |
    | `choice` | Discrete(K) | one type |

    The K types are `hard` (labels), `response` (soft targets), `feature` ([CLS] states through a trained map) and
    `relation` (similarities within the batch), each divided by its own scale, measured after reset.

    ## Observation space
    A bounded float32 vector. `observation="cls"` adds the mean student and teacher [CLS] states of the coming batch.

    {observations}

    ## Reward
    Measured on fixed rows of the `reward` split, every `reward_every` decisions (0 between):
    `cross_entropy` (default) is its drop since the last evaluation, `accuracy` the gain of accuracy, `relative` the
    drop less that of the uniform control with the same seed. A student that diverges ends the episode with -1.
    The reported score is another number: it comes from the `report` split, which no env opens.

    ## Episode start and end
    `reset(seed)` fixes first weights, data order, label noise and context. The episode terminates when the budget of
    updates is spent (the observation shows it) or the student diverges (`info["failure"]`). It never truncates.

    ## Arguments
    `action`, `observation` (`vector`, `cls`), `reward`, `reward_every`, `context` (`default`, `train`, `held-out`,
    or one by name), `teachers` (a file of one's own), `teacher` (`stored`, `live`, `untuned`), `rows` (`train`,
    `train+reward`), `knowledge`, `tau`, `scales`, `student`, `learning_rate`, `horizon`, `precision` (`float32`,
    `bfloat16`), `data` (`auto`, `hub`, `embedded`, a path), `device` (`auto`, `cpu`, `cuda`), `backend` (`full`; `tiny`
    for tests), `render_mode` (`ansi`, `rgb_array`). docs/environments.md says more.

    ## Version history
    v0: first release.
    """

    Family = KnowledgeSelect


class KnowledgeSelectVectorEnv(DistillationVectorEnv):
    """`KnowledgeSelectEnv` for N students on one device."""

    Family = KnowledgeSelect
