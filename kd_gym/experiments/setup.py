"""From the words of a command to an env: ids, keyword arguments and the action kind that an agent prefers."""

import inspect
from dataclasses import dataclass, field
from typing import Any, get_args

import gymnasium as gym

from kd_gym import ENV_IDS
from kd_gym.agents.protocol import Controller, agent_class, check_fit
from kd_gym.envs.episodes import EpisodeConfig
from kd_gym.envs.faces import DistillationEnv, DistillationVectorEnv
from kd_gym.envs.family import Family
from kd_gym.envs.lab import Lab, open_lab
from kd_gym.envs.recipes import Backend, Origin
from kd_gym.envs.registration import FAMILIES
from kd_gym.errors import KDGymError
from kd_gym.plugins import load, nearest

# where episodes of different purposes take their seeds; an env that draws its own stays below all of them
EVALUATION_SEEDS = 1_000_000_000
SELECTION_SEEDS = 2_000_000_000


def resolve_id(env: str) -> str:
    """The full id of `KnowledgeSelect-SST2` or `KnowledgeSelect-SST2-v0`; the nearest valid one if unknown."""
    for candidate in (env, f"{env}-v0"):
        if candidate in gym.registry and candidate in ENV_IDS:
            return candidate
    raise nearest("env", env, [name.removesuffix("-v0") for name in ENV_IDS])


@dataclass(frozen=True)
class EnvSpec:
    """An env as a command names it: everything but the number of students.

    `config` holds the env's own keyword arguments (`action`, `context`, `reward`, ...).
    """

    env: str
    data: str = "auto"
    device: str = "auto"
    backend: Backend = "full"
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The full id."""
        return resolve_id(self.env)

    @property
    def family_name(self) -> str:
        """What stands before the task."""
        return self.id.partition("-")[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """All keyword arguments of `gym.make`."""
        return {"data": self.data, "device": self.device, "backend": self.backend, **self.config}

    def with_config(self, **config: Any) -> "EnvSpec":
        """The same with other keyword arguments of the env."""
        return EnvSpec(self.env, self.data, self.device, self.backend, {**self.config, **config})

    def for_agent(self, agent: type[Controller]) -> "EnvSpec":
        """The same with the action kind that the agent prefers, unless one is given, and with what else it needs.

        Raises:
            KDGymError: the agent does not serve this id, or not with the arguments given.
        """
        name, family = agent.__name__, self.family_name
        fits, takes = getattr(agent, "fits", ()), getattr(agent, "actions", Controller.actions)
        arguments = env_arguments(self.env)
        kinds = get_args(arguments["action"].annotation)
        valid = [kind for kind in takes if kind in kinds]
        if (fits and family not in fits) or not valid:
            families = fits or [
                f for f in FAMILIES if set(get_args(env_arguments(f)["action"].annotation)) & set(takes)
            ]
            raise KDGymError(f"{name} does not serve {self.id}; it fits {', '.join(f'{f}-*' for f in families)}")
        needed = {key: value for key, value in getattr(agent, "options", {}).items() if key in arguments}
        needed = {"action": self.config.get("action") or valid[0], **needed}
        if needed["action"] not in valid:
            raise KDGymError(f"{name} takes no {needed['action']!r} actions; it takes {', '.join(valid)}")
        check_fit(agent, family, {**needed, **self.config})
        preferred = getattr(agent, "defaults", {})
        return self.with_config(**{**preferred, **self.config, **needed})

    @property
    def family(self) -> Family:
        """What actions mean, and the recipe, under these arguments."""
        cls, kwargs = _env_class(self.env).Family, gym.spec(self.id).kwargs
        options = {k: v for k, v in self.config.items() if k in inspect.signature(cls).parameters}
        named = {k: v for k, v in {**kwargs, **self.config}.items() if k in Origin.__dataclass_fields__}
        return cls(Origin(backend=self.backend, **named), **options)

    def lab(self) -> Lab:
        """The data, teachers and starts behind the env."""
        return open_lab(self.family.recipe, self.data, self.device, self.backend)

    def make(self) -> DistillationEnv:
        """One student."""
        env = gym.make(self.id, **self.kwargs).unwrapped
        assert isinstance(env, DistillationEnv)
        return env

    def make_vec(self, students: int) -> DistillationVectorEnv:
        """N students on one device."""
        env = gym.make_vec(self.id, num_envs=students, **self.kwargs).unwrapped
        assert isinstance(env, DistillationVectorEnv)
        return env


def agent_for(name: str, spec: EnvSpec) -> tuple[type[Controller], str, EnvSpec]:
    """An agent's class, its argument, and the env with the action kind that it prefers."""
    cls, argument = agent_class(name)
    return cls, argument, spec.for_agent(cls)


def _env_class(env: str) -> type[DistillationEnv]:
    found: type[DistillationEnv] = load(str(gym.spec(resolve_id(env)).entry_point))
    return found


def env_arguments(env: str) -> dict[str, inspect.Parameter]:
    """The keyword arguments of an id that a user may set, beside data, device and backend."""
    parts = (_env_class(env).Family, EpisodeConfig, Origin)
    parameters = {name: p for part in parts for name, p in inspect.signature(part).parameters.items()}
    hidden = {"self", "origin", "task", "base", "backend"}
    return {name: p for name, p in parameters.items() if name not in hidden}
