"""An agent of one's own: random search over fixed weights.

kd-gym train --env KnowledgeSelect-SST2 --agent examples.custom_agent:RandomSearch
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from kd_gym.agents import Controller


@dataclass(frozen=True)
class Settings:
    width: float = 1.0
    """how far from the uniform control (0) to the edge of the action space (1) weights are drawn"""


class RandomSearch(Controller):
    """Each episode tries one vector of weights; the one with the best return is kept."""

    Config = Settings  # --agent-config.width
    actions = ("weights",)
    learns = True

    def __init__(self, env: Any, **kwargs: Any) -> None:
        super().__init__(env, **kwargs)
        self.best = {"weights": np.zeros(env.action_space.shape, np.float32), "return": -np.inf}
        self.episodes = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        return self.best["weights"]

    def learn(self, env: Any, steps: int, folder: Path) -> None:
        rng = np.random.default_rng([self.seed, int(self.episodes)])
        env.reset(seed=rng.integers(10**9, size=env.num_envs).tolist())
        tried = rng.uniform(-self.config.width, self.config.width, env.action_space.shape).astype(np.float32)
        returns = np.zeros(env.num_envs)
        for _ in range(0, steps, env.num_envs):  # one decision of every student each
            _, rewards, terminated, truncated, _ = env.step(tried)
            returns += rewards
            for slot in np.flatnonzero(terminated | truncated):  # ended, and already begun anew
                if returns[slot] > self.best["return"]:
                    self.best = {"weights": tried[slot].copy(), "return": returns[slot]}
                tried[slot] = rng.uniform(-self.config.width, self.config.width, tried[slot].shape)
                returns[slot] = 0
                self.episodes += 1

    def save(self, folder: Path) -> None:
        state = {**self.best, "episodes": self.episodes}
        save_file({name: np.asarray(value) for name, value in state.items()}, folder / "agent.safetensors")

    def load(self, folder: Path) -> None:
        self.best = load_file(folder / "agent.safetensors")
        self.episodes = self.best.pop("episodes")
