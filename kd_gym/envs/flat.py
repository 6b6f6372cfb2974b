"""Flat spaces for libraries that take neither matrices of bits nor dicts."""

from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def flat_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The one-dimensional form of a space: a Box, a MultiBinary, or the Discrete space itself."""
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary(prod(space.shape))
    return space if isinstance(space, spaces.Discrete) else spaces.flatten_space(space)


def unflatten(space: spaces.Space[Any], value: Any) -> Any:
    """An element of `space` out of its flat form."""
    if isinstance(space, spaces.Dict):
        return spaces.unflatten(space, np.asarray(value))
    flat = np.asarray(value)
    if isinstance(space, spaces.Discrete) or flat.size != prod(space.shape or ()):
        return value  # if it is of another size, the env below says so
    return flat.reshape(space.shape or ())


class FlatEnv(gym.Wrapper[Any, Any, Any, Any]):
    """An env with one-dimensional observations and actions, whatever the one below has."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = flat_space(env.observation_space)
        self.action_space = flat_space(env.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the env below."""
        seen, info = self.env.reset(seed=seed, options=options)
        return np.ravel(seen), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the env below."""
        seen, *rest = self.env.step(unflatten(self.env.action_space, action))
        return (np.ravel(seen), *rest)  # type: ignore[return-value]
