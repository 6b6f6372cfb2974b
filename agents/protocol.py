"""What a controller is, and the names by which the command line knows them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kd_gym.envs.family import Family
from kd_gym.errors import KDGymError
from kd_gym.plugins import Registry

Array = NDArray[Any]


@dataclass(frozen=True)
class NoConfig:
    """A controller without settings."""


class Controller:
    """Base of all controllers. To write one, subclass it and give it `predict`; to make it learn, `learn` too.

    Attributes:
        Config: a dataclass of its settings; the command line makes `--agent-config.KEY` of each field.
        actions: the action kinds that it can take, the preferred one first.
        learns: whether `learn` does anything.

    Args:
        env: an env of the kind that it will control. It tells spaces and recipe, and is not stepped.
        seed: of everything random in the controller.
        config: its settings.
        argument: what stands behind the colon of its name (`single:response`), or an empty text.
    """

    Config: ClassVar[type] = NoConfig
    actions: ClassVar[tuple[str, ...]] = ("weights", "multi", "choice")
    learns: ClassVar[bool] = False

    def __init__(self, env: gym.Env[Any, Any], *, seed: int = 0, config: Any = None, argument: str = "") -> None:
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.family: Family = env.unwrapped.family  # type: ignore[attr-defined]
        self.recipe = self.family.recipe
        self.seed = seed
        self.config = config if config is not None else self.Config()
        self.argument = argument

    def predict(
        self,
        observation: Array,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """The action for one observation [F], or actions for a batch [N, F]: Stable-Baselines3's protocol."""
        if observation.ndim == 1:
            return np.asarray(self.act(observation)), state
        return np.stack([self.act(row) for row in observation]), state

    def act(self, observation: Array) -> Array:
        """The action for one observation, for controllers that need no batch."""
        raise NotImplementedError(f"{type(self).__name__} has neither predict nor act")

    def learn(self, env: gym.vector.VectorEnv[Any, Any, Any], steps: int, folder: Path) -> None:
        """Learn from `steps` decisions of the students of `env`; TensorBoard events go to `folder`."""

    def save(self, folder: Path) -> None:
        """Write what was learnt into a folder: tensors as safetensors and the rest as JSON, never pickle."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""

    @property
    def flops(self) -> int:
        """Floating point operations of one decision."""
        return 0


AGENTS = Registry(
    "agents",
    {
        "ppo": "kd_gym.agents.sb3:PPOAgent",
        "a2c": "kd_gym.agents.sb3:A2CAgent",
        "sac": "kd_gym.agents.sb3:SACAgent",
        "td3": "kd_gym.agents.sb3:TD3Agent",
        "dqn": "kd_gym.agents.sb3:DQNAgent",
        "uniform": "kd_gym.agents.heuristics:Uniform",
        "random": "kd_gym.agents.heuristics:Random",
        "static": "kd_gym.agents.heuristics:Static",
        "single": "kd_gym.agents.heuristics:Single",
        "schedule": "kd_gym.agents.heuristics:Schedule",
    },
)


def agent_class(name: str) -> tuple[type[Controller], str]:
    """The class of `NAME`, `NAME:ARGUMENT` or `module:Class`, and the argument.

    Raises:
        KDGymError: an unknown name (the nearest valid one is named), or an object that is no controller.
    """
    head, _, argument = name.partition(":")
    known = head in AGENTS.names()
    found = AGENTS.get(head if known else name)
    if not (isinstance(found, type) and callable(getattr(found, "predict", None))):
        raise KDGymError(f"{name!r} is no controller class: it needs predict(observation, ...) -> (action, state)")
    return found, argument if known else ""


def make_controller(name: str, env: gym.Env[Any, Any], seed: int = 0, config: Any = None) -> Controller:
    """A controller by name for envs like this one."""
    cls, argument = agent_class(name)
    return cls(env, seed=seed, config=config, argument=argument)
