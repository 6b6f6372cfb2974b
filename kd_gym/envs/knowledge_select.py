"""KnowledgeSelect: which kinds of knowledge the student learns from, over its training."""

from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kd_gym.envs.episodes import EpisodeConfig, ObservationKind, RewardKind
from kd_gym.envs.faces import DistillationEnv, DistillationVectorEnv, Family
from kd_gym.envs.recipes import Backend, EnvRecipe, recipe_of
from kd_gym.errors import KDGymError

ActionKind = Literal["weights", "multi", "choice"]


class KnowledgeSelect(Family):
    """The three kinds of action over K knowledge types."""

    def __init__(self, recipe: EnvRecipe, action: ActionKind) -> None:
        super().__init__(recipe)
        if action not in ActionKind.__args__:  # type: ignore[attr-defined]
            raise KDGymError(f"unknown action kind {action!r}: weights, multi or choice")
        self.action = action
        self.k = len(recipe.process.knowledge)

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Box [-1, 1]^K, MultiBinary(K) or Discrete(K)."""
        if self.action == "weights":
            return spaces.Box(-1.0, 1.0, (self.k,), np.float32)
        return spaces.MultiBinary(self.k) if self.action == "multi" else spaces.Discrete(self.k)

    def weights(self, actions: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Weights [N, K] that sum to 1; an empty hard selection keeps the control before."""
        if self.action == "choice":
            return np.eye(self.k)[actions], np.zeros(len(actions), np.bool_)
        raw = (actions.astype(np.float64) + 1) / 2 if self.action == "weights" else actions.astype(np.float64)
        total = raw.sum(1, keepdims=True)
        none = total[:, 0] == 0
        weights = np.where(none[:, None], 1 / self.k, raw / np.where(none[:, None], 1, total))
        return weights, none & (self.action == "multi")


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
    `action`, `observation` (`vector`, `cls`), `reward`, `reward_every`, `context` (`default`, `train`, `held-out`, or
    one by name), `data` (`auto`, `hub`, `embedded`, a path), `device` (`auto`, `cpu`, `cuda`), `backend` (`full`;
    `tiny` for tests), `render_mode` (`ansi`, `rgb_array`).

    ## Version history
    v0: first release.
    """

    def __init__(
        self,
        task: str | None = None,
        base: bool = False,
        action: ActionKind = "weights",
        observation: ObservationKind = "vector",
        reward: RewardKind = "cross_entropy",
        reward_every: int = 1,
        context: str = "default",
        data: str = "auto",
        device: str = "auto",
        backend: Backend = "full",
        render_mode: str | None = None,
    ) -> None:
        family = KnowledgeSelect(recipe_of(task, base, backend), action)
        config = EpisodeConfig(observation, reward, reward_every, context)
        super().__init__(family, config, data, device, backend, render_mode)


class KnowledgeSelectVectorEnv(DistillationVectorEnv):
    """`KnowledgeSelectEnv` for N students on one device."""

    def __init__(
        self,
        num_envs: int = 1,
        task: str | None = None,
        base: bool = False,
        action: ActionKind = "weights",
        observation: ObservationKind = "vector",
        reward: RewardKind = "cross_entropy",
        reward_every: int = 1,
        context: str = "default",
        data: str = "auto",
        device: str = "auto",
        backend: Backend = "full",
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        family = KnowledgeSelect(recipe_of(task, base, backend), action)
        config = EpisodeConfig(observation, reward, reward_every, context)
        super().__init__(family, num_envs, config, data, device, backend)
