"""What a controller is, and the names by which the command line knows them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, get_args

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kd_gym.envs.family import Family
from kd_gym.errors import KDGymError
from kd_gym.plugins import Registry, nearest

Array = NDArray[Any]


@dataclass(frozen=True)
class NoConfig:
    """A controller without settings."""


def check_fit(agent: type, family: str, given: Mapping[str, Any]) -> None:
    """Raise `KDGymError` unless an agent serves envs of this family with these arguments."""
    name, fits, takes = agent.__name__, getattr(agent, "fits", ()), getattr(agent, "actions", Controller.actions)
    if fits and family not in fits:
        raise KDGymError(f"{name} does not serve {family}; it fits {', '.join(f'{f}-*' for f in fits)}")
    if given["action"] not in takes:
        raise KDGymError(f"{name} takes no {given['action']!r} actions; it takes {', '.join(takes)}")
    for key, value in getattr(agent, "options", {}).items():
        if given.get(key, value) != value:
            raise KDGymError(f"{name} needs {key}={value!r}, not {given[key]!r}")


def with_settings(config: Any, text: str) -> Any:
    """Settings with those of `KEY=VALUE,KEY=VALUE` in place of their own.

    Raises:
        KDGymError: an unknown key, or a value that its field cannot have.
    """
    known = {field.name: field.type for field in fields(config)}
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, _, given = part.partition("=")
        if key not in known:
            raise nearest("setting", key, known)
        found[key] = _value(key, given, get_args(known[key]) or (known[key],))
    return replace(config, **found)


def _value(key: str, given: str, options: tuple[Any, ...]) -> Any:
    """A setting's value: one of the words or of the types that it can have."""
    for option in options:
        if given in (option, "None" if option is NoneType else option):
            return None if option is NoneType else option
        if option in (int, float):
            try:
                value = option(given)
            except ValueError:
                continue
            if 0 <= value < math.inf and (value or option is float):  # rates, weights and counts
                return value
    names = (option.__name__ if isinstance(option, type) else str(option) for option in options)
    raise KDGymError(f"{key} cannot be {given!r}: give {' or '.join(names)}")


class Controller:
    """Base of all controllers. To write one, subclass it and give it `predict`; to make it learn, `learn` too.

    Attributes:
        Config: a dataclass of its settings; the command line makes `--agent-config.KEY` of each field, and of one that
            does not learn `NAME:KEY=VALUE`.
        actions: the action kinds that it can take, the preferred one first.
        fits: the env families that it serves; none named: all that have one of its action kinds.
        options: arguments of the env that it needs to have just so.
        defaults: arguments of the env that it prefers, unless others are given.
        learns: whether `learn` does anything.
        fixed: whether its actions do not depend on how the student fares: what adaptive controllers have to beat.
        reads_reward: whether it reads the labels of `reward` itself: tables show no reward of it then.

    Args:
        env: an env of the kind that it will control. It tells spaces and recipe, and is not stepped.
        seed: of everything random in the controller.
        config: its settings.
        argument: what stands behind the colon of its name (`single:response`), or an empty text; settings, where it
            has some and does not learn (`lgtm:mode=faithful`).
    """

    Config: ClassVar[type] = NoConfig
    actions: ClassVar[tuple[str, ...]] = ("weights", "multi", "choice", "dict")
    fits: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Mapping[str, Any]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    learns: ClassVar[bool] = False
    fixed: ClassVar[bool] = False
    reads_reward: ClassVar[bool] = False

    def __init__(self, env: gym.Env[Any, Any], *, seed: int = 0, config: Any = None, argument: str = "") -> None:
        given = env.unwrapped
        told = {**vars(given.episodes.config), **vars(given.family), **given.family.recipe.told()}  # type: ignore[attr-defined]
        check_fit(type(self), type(given.family).__name__, told)  # type: ignore[attr-defined]
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.family: Family = env.unwrapped.family  # type: ignore[attr-defined]
        self.recipe = self.family.recipe
        self.features = env.unwrapped.episodes.features  # type: ignore[attr-defined]
        self.seed = seed
        self.config = config if config is not None else self.Config()
        if fields(self.config) and not self.learns:
            self.config = with_settings(self.config, argument)
        self.argument = argument

    def predict(
        self,
        observation: Array,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """The action for one observation, or actions for a batch of them: Stable-Baselines3's protocol."""
        single = observation.shape == self.observation_space.shape
        actions: list[Any] = [self.act(row) for row in (observation[None] if single else observation)]
        chosen: Any  # of a dict space: a dict, of arrays that are stacked for a batch
        if isinstance(actions[0], dict):
            chosen = actions[0] if single else {name: np.stack([a[name] for a in actions]) for name in actions[0]}
        else:
            chosen = np.asarray(actions[0]) if single else np.stack(actions)
        return chosen, state

    def act(self, observation: Array) -> Array:
        """The action for one observation, for controllers that need no batch."""
        raise NotImplementedError(f"{type(self).__name__} has neither predict nor act")

    def see(self, observation: Array, name: str) -> Array:
        """One part of observations [..., F], by the name that the env's page gives it."""
        start = 0
        for feature in self.features:
            if feature.name == name:
                return observation[..., start : start + feature.size]
            start += feature.size
        raise KDGymError(f"{type(self).__name__} needs {name!r} in the observation, which this env does not show")

    def generator(self, observation: Array) -> np.random.Generator:
        """A source of draws that is a function of (seed, observation): replays are equal."""
        words = np.frombuffer(np.ascontiguousarray(observation, np.float32).tobytes(), np.uint32)
        return np.random.default_rng([self.seed, *words])

    def begin(self, env: Any) -> None:
        """Called with the env after each reset of an episode that is scored.

        Who needs more than observations takes it from here: an oracle forks the process, a gradient-based controller
        sets its `hook`.
        """

    def learn(self, env: gym.vector.VectorEnv[Any, Any, Any], steps: int, folder: Path) -> None:
        """Learn from `steps` decisions of the students of `env`; TensorBoard events go to `folder`."""

    def value(self, observation: Array) -> float | None:
        """What it expects to get from here to the end of the episode; None: it estimates nothing."""
        return None

    def save(self, folder: Path) -> None:
        """Write what was learnt into a folder: tensors as safetensors and the rest as JSON, never pickle."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""

    @property
    def flops(self) -> int:
        """Floating point operations of one decision."""
        return 0

    def cost(self, decisions: int) -> int:
        """Floating point operations of an episode of so many decisions."""
        return decisions * self.flops

    def notes(self) -> dict[str, Any]:
        """What it has to tell of the episode since `begin`, by name, as JSON can hold it: kept with the score."""
        return {}


AGENTS = Registry(
    "agents",
    {
        "ppo": "kd_gym.agents.sb3:PPOAgent",
        "a2c": "kd_gym.agents.sb3:A2CAgent",
        "sac": "kd_gym.agents.sb3:SACAgent",
        "td3": "kd_gym.agents.sb3:TD3Agent",
        "dqn": "kd_gym.agents.sb3:DQNAgent",
        "aks": "kd_gym.agents.aks:AKS",
        "rlkd": "kd_gym.agents.rlkd:RLKD",
        "uniform": "kd_gym.agents.heuristics:Uniform",
        "uniform+reward": "kd_gym.agents.heuristics:UniformWithReward",
        "random": "kd_gym.agents.heuristics:Random",
        "static": "kd_gym.agents.heuristics:Static",
        "single": "kd_gym.agents.heuristics:Single",
        "schedule": "kd_gym.agents.heuristics:Schedule",
        "best-single": "kd_gym.agents.teachers:BestSingle",
        "weighted-ensemble": "kd_gym.agents.teachers:WeightedEnsemble",
        "ca-mkd": "kd_gym.agents.teachers:CAMKD",
        "govern": "kd_gym.agents.teachers:Govern",
        "dynamic-kd": "kd_gym.agents.dynamic_kd:DynamicKD",
        "curriculum": "kd_gym.agents.heuristics:Curriculum",
        "exp3": "kd_gym.agents.bandits:Exp3",
        "linucb": "kd_gym.agents.bandits:LinUCB",
        "greedy": "kd_gym.agents.greedy:Greedy",
        "lgtm": "kd_gym.agents.lgtm:LGTM",
        "lgtm-priority": "kd_gym.agents.lgtm:LGTMPriority",
        "ikd": "kd_gym.agents.ikd:IKD",
        "meta-distil": "kd_gym.agents.meta_distil:MetaDistil",
        "prokt": "kd_gym.agents.prokt:ProKT",
        "dml": "kd_gym.agents.dml:DML",
        "takd": "kd_gym.agents.takd:TAKD",
        "rco": "kd_gym.agents.rco:RCO",
        "pesf-kd": "kd_gym.agents.pesf_kd:PESFKD",
        **{
            name: f"kd_gym.agents.presets:{preset}"
            for name, preset in {
                "kd": "KD",
                "pkd-skip": "PKDSkip",
                "pkd-last": "PKDLast",
                "skd": "SKD",
                "dist": "DIST",
                "rkd": "RKD",
                "minilm": "MiniLM",
                "tinybert": "TinyBERT",
                "annealed-kd": "AnnealedKD",
            }.items()
        },
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
