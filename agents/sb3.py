"""Stable-Baselines3's PPO, A2C, SAC, TD3 and DQN, with defaults for slow environments.

An episode is a whole distillation, so samples are dear: rollouts are a few episodes, and many epochs are made over
them. Policies are saved as safetensors and JSON, with their optimisers and, off policy, the replay buffer.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from kd_gym.agents.protocol import Array, Controller
from kd_gym.agents.saving import load_tree, save_tree
from kd_gym.envs.faces import TRAIN_SEEDS
from kd_gym.envs.sb3 import SB3VecEnv
from kd_gym.errors import KDGymError

_BUFFER = 100_000_000  # numbers in the observations of a replay buffer at most: 0.8 GB
_REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass(frozen=True)
class OnPolicyConfig:
    """Settings of PPO and A2C."""

    learning_rate: float = 1e-3
    """step size of the policy's optimiser"""
    gamma: float = 0.99
    """discount of rewards per decision"""
    gae_lambda: float = 0.95
    """trade of bias for variance in advantages"""
    entropy: float = 0.0
    """weight of the entropy bonus"""
    hidden: int = 64
    """width of the two layers of policy and value network"""
    rollout_episodes: int = 4
    """episodes, over all students together, between two updates of the policy"""


@dataclass(frozen=True)
class PPOConfig(OnPolicyConfig):
    """Settings of PPO."""

    epochs: int = 10
    """passes over each rollout"""
    minibatches: int = 2
    """parts of a rollout, each one optimiser step of a pass"""


@dataclass(frozen=True)
class OffPolicyConfig:
    """Settings of SAC, TD3 and DQN."""

    learning_rate: float = 1e-3
    """step size of the optimisers"""
    gamma: float = 0.99
    """discount of rewards per decision"""
    hidden: int = 64
    """width of the two layers of each network"""
    batch: int = 64
    """transitions in a gradient step"""
    buffer: int = 20_000
    """transitions kept, if their observations are no matrices of many numbers"""
    warmup_episodes: int = 4
    """episodes of random actions before learning starts"""


@dataclass(frozen=True)
class TD3Config(OffPolicyConfig):
    """Settings of TD3."""

    noise: float = 0.1
    """deviation of the noise on actions while learning"""


class SB3Agent(Controller):
    """A Stable-Baselines3 model as a controller."""

    algorithm: ClassVar[Callable[..., BaseAlgorithm]]
    log_interval: ClassVar[int] = 1  # rollouts on policy, episodes off policy
    actions: ClassVar[tuple[str, ...]] = ("weights", "multi", "choice")
    learns = True

    def __init__(self, env: gym.Env[Any, Any], *, seed: int = 0, config: Any = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        if isinstance(self.action_space, gym.spaces.MultiBinary) and len(self.action_space.shape) > 1:
            raise KDGymError(f"{type(self).__name__} takes no matrices of bits; use action='weights'")
        self.model = self._build(self._spaces(1), students=1)

    def _spaces(self, students: int) -> DummyVecEnv:
        """Something to build a model on before there is an env to learn from."""
        return DummyVecEnv([lambda: _SpacesOnly(self.observation_space, self.action_space)] * students)

    def _arguments(self, students: int) -> dict[str, Any]:
        raise NotImplementedError

    def _build(self, env: Any, students: int) -> BaseAlgorithm:
        return self.algorithm(
            "MlpPolicy",
            env,
            seed=self.seed,
            device="cpu",  # a policy of 64 x 64 is faster there, beside students on a GPU too
            gamma=self.config.gamma,
            learning_rate=self.config.learning_rate,
            policy_kwargs={"net_arch": [self.config.hidden] * 2},
            **self._arguments(students),
        )

    def predict(
        self,
        observation: Array,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """The model's own `predict`."""
        return self.model.predict(observation, state, episode_start, deterministic)

    def value(self, observation: Array) -> float | None:
        """What an actor-critic policy's value network says; None for the others."""
        policy = self.model.policy
        if not isinstance(policy, ActorCriticPolicy):
            return None
        with torch.no_grad():
            return float(policy.predict_values(policy.obs_to_tensor(observation)[0])[0, 0])

    def learn(self, env: gym.vector.VectorEnv[Any, Any, Any], steps: int, folder: Path) -> None:
        """Go on learning for so many decisions (all students together)."""
        face = VecMonitor(SB3VecEnv(env))  # the monitor gives SB3 its `rollout/*` tags
        before, self.model = self.model, self._build(face, env.num_envs)
        self._transfer(before)
        # after _build, which seeds too: a resumed training gets other episodes, and none of the scorer's
        face.seed((self.seed + before.num_timesteps) % (TRAIN_SEEDS - env.num_envs))
        self.model.set_logger(configure(str(folder), ["tensorboard"]))
        self.model.learn(steps, log_interval=self.log_interval, reset_num_timesteps=False)

    def _transfer(self, before: BaseAlgorithm) -> None:
        """Take over what an earlier model has learnt: the new one was built for another number of students."""
        self.model.set_parameters(before.get_parameters(), exact_match=True, device="cpu")  # type: ignore[arg-type]
        for name in _variables(before):
            _set(self.model, name, _get(before, name).detach())
        self.model.num_timesteps = before.num_timesteps
        old, new = getattr(before, "replay_buffer", None), getattr(self.model, "replay_buffer", None)
        if old is not None and new is not None and (old.pos or old.full):
            _fill_buffer(new, {name: getattr(old, name) for name in _REPLAY}, old.pos, old.full)

    def save(self, folder: Path) -> None:
        """`agent.safetensors` (networks, optimisers, replay buffer) and `agent.json` (settings, counters)."""
        tree: dict[str, Any] = {"parameters": self.model.get_parameters()}
        tree["variables"] = {name: _get(self.model, name).detach() for name in _variables(self.model)}
        tree |= {"config": asdict(self.config), "steps": self.model.num_timesteps}
        buffer = getattr(self.model, "replay_buffer", None)
        if buffer is not None:
            end = buffer.buffer_size if buffer.full else buffer.pos
            tree["replay"] = {n: torch.from_numpy(getattr(buffer, n)[:end].copy()) for n in _REPLAY}
            tree |= {"pos": buffer.pos, "full": buffer.full}
        save_tree(folder, tree)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; the settings are those of this object."""
        tree = load_tree(folder)
        replay = tree.get("replay")
        if replay is not None and len(replay["rewards"]):
            students = replay["rewards"].shape[1]
            self.model = self._build(self._spaces(students), students)
            arrays = {name: value.numpy() for name, value in replay.items()}
            _fill_buffer(self.model.replay_buffer, arrays, tree["pos"], tree["full"])  # type: ignore[attr-defined]
        self.model.set_parameters(tree["parameters"], exact_match=True, device="cpu")
        for name, value in tree["variables"].items():
            _set(self.model, name, value)
        self.model.num_timesteps = tree["steps"]

    @property
    def flops(self) -> int:
        """Two for each parameter of the networks that act."""
        return 2 * sum(p.numel() for p in self.model.policy.parameters())


class _SpacesOnly(gym.Env[Any, Any]):
    """Spaces for a model that is built before there is an env to learn from."""

    def __init__(self, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


class PPOAgent(SB3Agent):
    """Proximal policy optimisation (Schulman et al., 2017): boxes, bits and choices."""

    algorithm = PPO
    Config = PPOConfig

    def _arguments(self, students: int) -> dict[str, Any]:
        steps = self.family.decisions * max(1, self.config.rollout_episodes // students)
        samples = steps * students
        parts = self.config.minibatches if samples % self.config.minibatches == 0 else 1
        return {
            "n_steps": steps,
            "batch_size": samples // parts,
            "n_epochs": self.config.epochs,
            "gae_lambda": self.config.gae_lambda,
            "ent_coef": self.config.entropy,
        }


class A2CAgent(SB3Agent):
    """Advantage actor-critic (Mnih et al., 2016): boxes, bits and choices."""

    algorithm = A2C
    Config = OnPolicyConfig

    def _arguments(self, students: int) -> dict[str, Any]:
        steps = self.family.decisions * max(1, self.config.rollout_episodes // students)
        return {"n_steps": steps, "gae_lambda": self.config.gae_lambda, "ent_coef": self.config.entropy}


class _OffPolicyAgent(SB3Agent):
    Config = OffPolicyConfig
    log_interval = 4

    def _arguments(self, students: int) -> dict[str, Any]:
        decisions = self.family.decisions
        return {
            "batch_size": self.config.batch,
            "buffer_size": min(self.config.buffer, _BUFFER // math.prod(self.observation_space.shape or (1,))),
            "learning_starts": decisions * self.config.warmup_episodes,
            "train_freq": (decisions, "step"),
            "gradient_steps": decisions * students,
        }


class SACAgent(_OffPolicyAgent):
    """Soft actor-critic (Haarnoja et al., 2018): weights only."""

    algorithm = SAC
    actions = ("weights",)


class TD3Agent(_OffPolicyAgent):
    """Twin delayed DDPG (Fujimoto et al., 2018): weights only."""

    algorithm = TD3
    Config = TD3Config
    actions = ("weights",)

    def _arguments(self, students: int) -> dict[str, Any]:
        size = self.action_space.shape
        assert size is not None
        noise = NormalActionNoise(np.zeros(size), np.full(size, self.config.noise))  # its policy has none of its own
        return {**super()._arguments(students), "action_noise": noise}


class DQNAgent(_OffPolicyAgent):
    """Deep Q-network (Mnih et al., 2015): one knowledge type at a time."""

    algorithm = DQN
    actions = ("choice",)

    def _arguments(self, students: int) -> dict[str, Any]:
        settings = super()._arguments(students)
        # the target follows after every round of episodes; SB3's 10,000 steps are more than a whole training
        return {**settings, "target_update_interval": settings["gradient_steps"]}


# ---------------------------------------------------------------------- a model's state as tensors and JSON


def _variables(model: BaseAlgorithm) -> list[str]:
    """Names of trained tensors outside the modules (SAC's temperature)."""
    return [name for name in model._get_torch_save_params()[1] if getattr(model, name, None) is not None]


def _get(model: BaseAlgorithm, name: str) -> torch.Tensor:
    value: torch.Tensor = getattr(model, name)
    return value


def _set(model: BaseAlgorithm, name: str, value: torch.Tensor) -> None:
    with torch.no_grad():
        _get(model, name).copy_(value)


def _fill_buffer(buffer: Any, arrays: dict[str, np.ndarray[Any, Any]], pos: int, full: bool) -> None:
    for name in _REPLAY:
        target = getattr(buffer, name)
        if target.shape[1:] != arrays[name].shape[1:]:
            return  # another number of students: its rows do not fit, so learning starts from an empty buffer
        target[: len(arrays[name])] = arrays[name]
    buffer.pos, buffer.full = pos, full
