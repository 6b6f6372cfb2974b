"""What an env family is: the meaning of its actions, and what its controllers see."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from kd_gym.backend.terms import Control
from kd_gym.envs import observation
from kd_gym.envs.lab import Lab
from kd_gym.envs.observation import Feature
from kd_gym.envs.recipes import EnvRecipe

if TYPE_CHECKING:
    from kd_gym.envs.episodes import Episodes

Weights = NDArray[np.float64]
Granularity = Literal["batch", "instance"]  # one decision for a while, or one for each sample


class Decision(NamedTuple):
    """What a batch of actions sets: the control, the weights [N, D] that stand for it in infos and figures (their
    names are the family's `labels`), and how many selections were empty [N].
    """

    control: Control
    shown: Weights
    empty: NDArray[np.int64]


class Family:
    """The base of the env families. One object serves N students.

    Attributes:
        recipe: what the id means.
        updates: updates of one decision.
        reward_every: decisions between two evaluations, unless the env is told otherwise.
        selects: whether actions choose the rows of a batch: then nothing can be said of the coming batch, or measured
            on the batch just trained on.

    Subclasses take an `Origin` and options of their own.
    """

    reward_every = 1
    selects = False

    def __init__(self, recipe: EnvRecipe) -> None:
        self.recipe = recipe
        self.updates = recipe.updates

    @property
    def decisions(self) -> int:
        """Decisions of one episode."""
        return self.recipe.process.horizon // self.updates

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the D weights that a decision sets."""
        raise NotImplementedError

    @property
    def action_space(self) -> spaces.Space[Any]:
        """The space of one student's action."""
        raise NotImplementedError

    def decide(self, actions: Sequence[Any], episodes: "Episodes") -> Decision:
        """What the actions of N students set. Every element of the space is legal."""
        raise NotImplementedError

    def uniform(self, count: int) -> Control:
        """The uniform control of so many students: what rewards and scores are held against."""
        return Control(equal_knowledge(count, self.recipe))

    def initial(self) -> Weights:
        """The weights [D] before the first decision: those of the uniform control."""
        return np.full(len(self.labels), 1 / len(self.labels))

    # ------------------------------------------------------------------ what is seen: a vector, unless overridden

    def features(self, lab: Lab, kind: str) -> list[Feature]:
        """The parts of the observation vector."""
        widths = (lab.init.arch.hidden, lab.teacher.store.width) if kind == "cls" else (None, None)
        recipe = self.recipe
        return observation.features(self.labels, recipe.process.knowledge, recipe.teacher_names(), *widths)

    def observation_space(self, lab: Lab, kind: str) -> spaces.Box:
        """The space of one student's observation."""
        return observation.space(self.features(lab, kind))

    def observe(self, episodes: "Episodes") -> observation.Array:
        """The observations of N students."""
        return observation.vector(episodes.features, episodes.values())


def unit(actions: NDArray[Any]) -> Weights:
    """Weights in [0, 1] out of boxes [-1, 1]: (a + 1) / 2."""
    return (actions.astype(np.float64) + 1) / 2


def simplex(actions: NDArray[Any]) -> Weights:
    """Weights [..., D] that sum to 1 out of boxes [-1, 1]: `unit` divided by its sum; all at -1 is uniform."""
    return normalised(unit(actions))[0]


def normalised(raw: Weights) -> tuple[Weights, NDArray[np.bool_]]:
    """Non-negative numbers [..., D] divided by their sum, and where all are 0: these become uniform."""
    total = raw.sum(-1, keepdims=True)
    none = total == 0
    return np.where(none, 1 / raw.shape[-1], raw / np.where(none, 1, total)), none[..., 0]


def equal_knowledge(count: int, recipe: EnvRecipe) -> torch.Tensor:
    """Equal weights [N, K] of all knowledge types, where a family leaves them alone."""
    k = len(recipe.process.knowledge)
    return torch.full((count, k), 1 / k)
