"""Controls that do not learn: what every learned controller has to beat."""

from collections.abc import Callable

import gymnasium as gym
import numpy as np

from kd_gym.agents.protocol import Array, Controller
from kd_gym.errors import KDGymError
from kd_gym.plugins import nearest


def _mix(*parts: tuple[str, float]) -> dict[str, float]:
    return dict(parts)


# progress in [0, 1] -> weights by knowledge type
SCHEDULES: dict[str, Callable[[float], dict[str, float]]] = {
    "feature-response": lambda p: _mix(("feature" if p < 0.5 else "response", 1.0)),
    "response-hard": lambda p: _mix(("response" if p < 0.5 else "hard", 1.0)),
    "hard-response": lambda p: _mix(("hard" if p < 0.5 else "response", 1.0)),
    "anneal": lambda p: _mix(("response", 1 - p), ("hard", p)),
}


class _Weights(Controller):
    """A control given as weights by knowledge type."""

    actions = ("weights",)

    def _action(self, weights: dict[str, float]) -> Array:
        knowledge = self.recipe.process.knowledge
        for name in weights:
            if name not in knowledge:
                raise nearest("knowledge type", name, knowledge)
        top = max(weights.values())
        return np.array([2 * weights.get(name, 0.0) / top - 1 for name in knowledge], np.float32)


class Uniform(_Weights):
    """Equal weights, always: the plain sum of all knowledge losses."""

    def act(self, observation: Array) -> Array:
        """The same for every observation."""
        return np.zeros(len(self.recipe.process.knowledge), np.float32)


class Static(_Weights):
    """`static:W1,W2,...`: fixed weights in the order of the knowledge types."""

    def __init__(self, env: gym.Env[Array, Array], *, seed: int = 0, config: object = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        names = self.recipe.process.knowledge
        try:
            values = [float(part) for part in argument.split(",")]
        except ValueError:
            values = []
        if len(values) != len(names) or not all(0 <= v < np.inf for v in values) or max(values) == 0:
            example = ",".join(["1"] * len(names))
            raise KDGymError(f"static takes {len(names)} weights for {', '.join(names)}: static:{example}")
        self._fixed = self._action(dict(zip(names, values, strict=True)))

    def act(self, observation: Array) -> Array:
        """The same for every observation."""
        return self._fixed


class Single(_Weights):
    """`single:NAME`: one knowledge type alone."""

    def __init__(self, env: gym.Env[Array, Array], *, seed: int = 0, config: object = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        self._fixed = self._action({argument: 1.0})

    def act(self, observation: Array) -> Array:
        """The same for every observation."""
        return self._fixed


class Schedule(_Weights):
    """`schedule:NAME`: weights as a function of progress (see `SCHEDULES`)."""

    def __init__(self, env: gym.Env[Array, Array], *, seed: int = 0, config: object = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        if argument not in SCHEDULES:
            raise nearest("schedule", argument, SCHEDULES)

    def act(self, observation: Array) -> Array:
        """From the first number of the observation, the progress."""
        return self._action(SCHEDULES[self.argument](float(observation[0])))


class Random(Controller):
    """A uniformly drawn action at every decision, as a function of (seed, observation): replays are equal."""

    def act(self, observation: Array) -> Array:
        """A draw from the action space."""
        words = np.frombuffer(np.ascontiguousarray(observation, np.float32).tobytes(), np.uint32)
        self.action_space.seed(int(np.random.default_rng([self.seed, *words]).integers(2**31)))
        return np.asarray(self.action_space.sample())
