"""Stable-Baselines3's face of a Gymnasium vector env with same-step autoreset."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


def unbatch(infos: dict[str, Any], slot: int) -> dict[str, Any]:
    """One env's info out of Gymnasium's dict of arrays."""
    one: dict[str, Any] = {}
    for key, value in infos.items():
        if key.startswith("_") or not np.asarray(infos.get(f"_{key}", True)).reshape(-1)[_at(infos, key, slot)]:
            continue
        one[key] = unbatch(value, slot) if isinstance(value, dict) else _plain(value[slot])
    return one


def _at(infos: dict[str, Any], key: str, slot: int) -> int:
    return slot if f"_{key}" in infos else 0


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


class SB3VecEnv(VecEnv):
    """N students for Stable-Baselines3: `terminal_observation` and `TimeLimit.truncated` stand in the infos.

    The info that comes with a done is the ended episode's.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        self.vector = env
        self._pending: Any = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start an episode of every student, with the seeds given to `seed()` if there are any."""
        given = self._seeds if any(s is not None for s in self._seeds) else None
        seen, infos = self.vector.reset(seed=given)  # type: ignore[arg-type]
        self.reset_infos = [unbatch(infos, slot) for slot in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return np.asarray(seen)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._pending = actions

    def step_wait(self) -> VecEnvStepReturn:
        """One decision of every student."""
        seen, rewards, terminated, truncated, infos = self.vector.step(self._pending)
        done = np.logical_or(terminated, truncated)
        each = []
        for slot in range(self.num_envs):
            if done[slot]:
                info = unbatch(infos["final_info"], slot)
                info["terminal_observation"] = infos["final_obs"][slot]
                info["TimeLimit.truncated"] = bool(truncated[slot] and not terminated[slot])
            else:
                info = unbatch(infos, slot)
            each.append(info)
        return np.asarray(seen), np.asarray(rewards, np.float32), done, each

    def close(self) -> None:
        """Close the env below."""
        self.vector.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the env below, the same for all students."""
        return [getattr(self.vector.unwrapped, attr_name)] * len(self._chosen(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Students share one env, so attributes cannot differ between them."""
        raise AttributeError("students of one vector env share their attributes")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the env below once, and give its answer for each student."""
        answer = getattr(self.vector.unwrapped, method_name)(*args, **kwargs)
        return [answer] * len(self._chosen(indices))

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """No student has a wrapper of its own."""
        return [False] * len(self._chosen(indices))

    def _chosen(self, indices: VecEnvIndices) -> Sequence[int]:
        return list(self._get_indices(indices))
