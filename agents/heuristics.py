"""Controls that do not learn: what every learned controller has to beat."""

from collections.abc import Callable
from typing import ClassVar

import gymnasium as gym
import numpy as np

from kd_gym.agents.protocol import Array, Controller
from kd_gym.backend.sampling import MEASURES
from kd_gym.envs.sample_priority import QUANTILES
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


class FixedWeights(Controller):
    """A control given as weights by name."""

    actions = ("weights",)
    fixed = True

    def _action(self, weights: dict[str, float]) -> Array:
        labels = self.family.labels
        for name in weights:
            if name not in labels:
                raise nearest("weight", name, labels)
        if (self.action_space.shape or ())[-1:] != (len(labels),):
            raise KDGymError(f"{type(self).__name__} sets weights by name; this env's actions are scores of candidates")
        top = max(weights.values())
        action = np.array([2 * weights.get(name, 0.0) / top - 1 for name in labels], np.float32)
        return np.broadcast_to(action, self.action_space.shape or ())  # the same for every sample, where it has rows


class Uniform(FixedWeights):
    """Equal weights, always: the plain sum of all knowledge losses, all teachers alike, a plain draw of samples."""

    def act(self, observation: Array) -> Array:
        """The same for every observation."""
        return np.zeros(self.action_space.shape or (), np.float32)


class UniformWithReward(Uniform):
    """The uniform control, trained on `train` and `reward` together.

    What controllers have to beat that learn from the labels of `reward`; it stands beside them in every table.
    """

    options: ClassVar = {"rows": "train+reward"}
    reads_reward = True


class Static(FixedWeights):
    """`static:W1,W2,...`: fixed weights in the order of the env's own (knowledge types, teachers, quantiles)."""

    def __init__(self, env: gym.Env[Array, Array], *, seed: int = 0, config: object = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        names = self.family.labels
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


class Single(FixedWeights):
    """`single:NAME`: one knowledge type, or one teacher, alone."""

    fits = ("KnowledgeSelect", "TeacherWeight")

    def __init__(self, env: gym.Env[Array, Array], *, seed: int = 0, config: object = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        self._fixed = self._action({argument: 1.0})

    def act(self, observation: Array) -> Array:
        """The same for every observation."""
        return self._fixed


class Schedule(FixedWeights):
    """`schedule:NAME`: knowledge weights as a function of progress (see `SCHEDULES`)."""

    fits = ("KnowledgeSelect",)

    def __init__(self, env: gym.Env[Array, Array], *, seed: int = 0, config: object = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        if argument not in SCHEDULES:
            raise nearest("schedule", argument, SCHEDULES)

    def act(self, observation: Array) -> Array:
        """From the progress."""
        return self._action(SCHEDULES[self.argument](float(self.see(observation, "progress")[0])))


class Curriculum(FixedWeights):
    """`curriculum`: from easy to hard samples; `curriculum:back`: and back to easy ones.

    Under each measure of difficulty the quantile that stands where the course is has weight 1, and others less the
    farther they are from it.
    """

    fits = ("SamplePriority",)
    options: ClassVar = {"granularity": "batch"}

    def __init__(self, env: gym.Env[Array, Array], *, seed: int = 0, config: object = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        if argument not in ("", "back"):
            raise nearest("curriculum", argument, ("back",))

    def act(self, observation: Array) -> Array:
        """From the progress."""
        progress = float(self.see(observation, "progress")[0])
        if self.argument == "back":
            progress = 1 - abs(2 * progress - 1)
        quantiles = np.linspace(0, 1, QUANTILES)
        weights = np.exp(-4 * np.abs(quantiles - progress))
        return np.tile(2 * weights / weights.max() - 1, len(MEASURES)).astype(np.float32)


class Random(Controller):
    """A uniformly drawn action at every decision, as a function of (seed, observation): replays are equal."""

    fixed = True

    def act(self, observation: Array) -> Array:
        """A draw from the action space."""
        self.action_space.seed(int(self.generator(observation).integers(2**31)))
        drawn = self.action_space.sample()
        return drawn if isinstance(drawn, dict) else np.asarray(drawn)  # type: ignore[return-value]
