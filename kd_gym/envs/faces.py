"""Gymnasium's two faces of the same episodes: one env, and many students on one device."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from kd_gym.envs.episodes import EpisodeConfig, Episodes
from kd_gym.envs.family import Family
from kd_gym.envs.lab import Lab, open_lab
from kd_gym.envs.observation import Array
from kd_gym.envs.recipes import Backend, Origin
from kd_gym.envs.render import ansi_line, weights_image
from kd_gym.errors import KDGymError

TRAIN_SEEDS = 1_000_000_000  # seeds drawn by an env lie below; the scorer's lie above
RENDER_MODES = ["ansi", "rgb_array"]

Info = dict[str, Any]


def checked(space: spaces.Space[Any], action: Any) -> Any:
    """The action as the space's own type; `KDGymError` unless it is an element."""
    if isinstance(space, spaces.Dict):
        if not isinstance(action, dict) or set(action) != set(space):
            raise KDGymError(f"the action has to be a dict with just {', '.join(space)}")
        return {name: checked(part, action[name]) for name, part in space.items()}
    try:
        if isinstance(space, spaces.Box):
            action = np.asarray(action, space.dtype)
        elif isinstance(space, spaces.Discrete):
            number = np.ndim(action) == 0 and np.asarray(action).dtype.kind in "biuf"
            whole = number and np.isfinite(action) and action == np.floor(action)
            action = np.int64(action) if whole else action
        else:
            action = np.asarray(action)
    except (TypeError, ValueError):  # words, or rows of unequal length
        raise KDGymError(f"action {str(action)[:60]!r} is not an element of {space}") from None
    if not space.contains(action):
        shown = " ".join(np.array2string(np.asarray(action), threshold=12).split())
        raise KDGymError(f"action {shown} is not an element of {space}")
    return action


def described(
    family: Callable[..., Family], count: int, data: str, device: str, backend: Backend, arguments: dict[str, Any]
) -> Episodes:
    """The episodes of N students that an env's keyword arguments describe: each goes to whom it concerns."""
    parts: list[dict[str, Any]] = [
        {key: value for key, value in arguments.items() if key in kind.__dataclass_fields__}
        for kind in (Origin, EpisodeConfig)
    ]
    origin, config = Origin(backend=backend, **parts[0]), EpisodeConfig(**parts[1])
    made = family(origin, **{key: value for key, value in arguments.items() if key not in parts[0] | parts[1]})
    return Episodes(made, open_lab(made.recipe, data, device, backend), count, config)


class DistillationEnv(gym.Env[Array, Any]):
    """One student: Gymnasium's ordinary API over `Episodes` of one.

    Args:
        data: `auto`, `hub`, `embedded` or a path.
        device: `auto`, `cpu` or `cuda`.
        backend: `full`; `tiny` for tests.
        render_mode: `ansi` or `rgb_array`.
        arguments: the attributes of `Origin` and `EpisodeConfig`, and what the family adds; see its page.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own form)
        "render_modes": RENDER_MODES,
        "render_fps": 4,
    }

    Family: ClassVar[Callable[..., Family]]

    def __init__(
        self,
        data: str = "auto",
        device: str = "auto",
        backend: Backend = "full",
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        self.episodes = described(self.Family, 1, data, device, backend, arguments)
        self.family = self.episodes.family
        self.action_space = self.family.action_space
        self.observation_space = self.episodes.observation_space  # type: ignore[assignment]
        self.render_mode = render_mode
        self._history: list[NDArray[np.float64]] = []
        self._running = False

    @property
    def lab(self) -> Lab:
        """The data, teachers and starts behind this env."""
        return self.episodes.lab

    @property
    def cost(self) -> dict[str, float]:
        """FLOPs of the running episode and seconds since the env was made, by part.

        Seconds are measured, so they are not in `info`.
        """
        cost = self.episodes.process.cost
        return {
            "student_flops": float(cost.student[0]),
            "evaluation_flops": float(cost.evaluation[0]),
            "teacher_flops": float(cost.teacher[0]),
            **{f"{part}_seconds": seconds for part, seconds in cost.seconds.items()},
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        """Start the episode of this seed; without one, of a seed drawn by the env (`info["episode_seed"]`)."""
        super().reset(seed=seed)
        episode = int(self.np_random.integers(TRAIN_SEEDS)) if seed is None else seed
        self.episodes.begin([0], [episode])
        self._history = []
        self._running = True
        return self.episodes.observe()[0], self.episodes.info(0)

    def step(self, action: Any) -> tuple[Array, float, bool, bool, Info]:
        """One decision: the action sets the control, then the student trains for some updates under it."""
        if not self._running:
            raise KDGymError("the episode is over; call reset() before step()")
        decision = self.family.decide([checked(self.action_space, action)], self.episodes)
        reward = float(self.episodes.step(decision)[0])
        self._history.append(self.episodes.control[0].copy())
        self._running = not bool(self.episodes.terminated[0])
        return self.episodes.observe()[0], reward, not self._running, False, self.episodes.info(0)

    def render(self) -> Any:
        """`ansi`: a line on the last decision; `rgb_array`: the weights over the episode so far."""
        if self.render_mode == "ansi":
            return ansi_line(self.episodes.info(0))
        if self.render_mode == "rgb_array":
            decisions = self.family.recipe.process.horizon // self.family.updates
            return weights_image(self.family.labels, self._history, decisions)
        return None

    def snapshot(self) -> tuple[Any, list[NDArray[np.float64]], bool]:
        """The whole state of the episode, for `restore`."""
        return self.episodes.snapshot(), list(self._history), self._running

    def restore(self, state: tuple[Any, list[NDArray[np.float64]], bool]) -> None:
        """Go on from a snapshot of this env or of one of the same id and arguments."""
        episodes, history, self._running = state
        self.episodes.restore(episodes)
        self._history = list(history)

    def fork(self) -> "DistillationEnv":
        """A second env in the same state: what happens in one never reaches the other. No controller is hooked in."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.episodes = copy.copy(self.episodes)
        other.episodes.process = self.episodes.process.fork()
        other.action_space = copy.deepcopy(self.action_space)  # it holds a generator
        other.restore(self.snapshot())
        other._np_random = np.random.default_rng()
        other._np_random.bit_generator.state = self.np_random.bit_generator.state
        return other


class DistillationVectorEnv(gym.vector.VectorEnv[Array, Any, NDArray[Any]]):
    """`DistillationEnv` for N students on one device: Gymnasium's vector API, with same-step autoreset.

    `reset(seed=[...])` takes one seed for each student; a single seed s gives them s, s + 1, ...
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own form)
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    Family: ClassVar[Callable[..., Family]]

    def __init__(
        self,
        num_envs: int = 1,
        data: str = "auto",
        device: str = "auto",
        backend: Backend = "full",
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        if num_envs < 1:
            raise KDGymError(f"num_envs must be at least 1, not {num_envs}")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.episodes = described(self.Family, num_envs, data, device, backend, arguments)
        self.family = self.episodes.family
        self.single_action_space = self.family.action_space
        self.single_observation_space = self.episodes.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]

    @property
    def lab(self) -> Lab:
        """The data, teachers and starts behind this env."""
        return self.episodes.lab

    def _draw(self, slots: Sequence[int]) -> list[int]:
        return [int(self._generators[slot].integers(TRAIN_SEEDS)) for slot in slots]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, Info]:
        """Start an episode of every student."""
        seeds: list[int | None]
        if seed is None:
            seeds = [None] * self.num_envs
        elif isinstance(seed, int | np.integer):
            seeds = [int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise KDGymError(f"{len(seeds)} seeds were given for {self.num_envs} students")
        for slot, given in enumerate(seeds):
            if given is not None:
                self._generators[slot] = np.random.default_rng(given)
        drawn = [self._draw([slot])[0] if given is None else given for slot, given in enumerate(seeds)]
        self.episodes.begin(range(self.num_envs), drawn)
        return self.episodes.observe(), self._infos(range(self.num_envs))

    def step(self, actions: Any) -> tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """One decision of every student; episodes that end start anew in the same step.

        The last observation and info of an ended episode are in `info["final_obs"]` and `info["final_info"]`.
        """
        each = self._split(actions)
        if len(each) != self.num_envs:
            raise KDGymError(f"{len(each)} actions were given for {self.num_envs} students")
        decision = self.family.decide([checked(self.single_action_space, a) for a in each], self.episodes)
        rewards = self.episodes.step(decision)
        terminated = self.episodes.terminated
        seen, infos = self.episodes.observe(), self._infos(range(self.num_envs))
        ended = np.flatnonzero(terminated).tolist()
        if ended:
            final_obs = np.full(self.num_envs, None, dtype=object)
            for slot in ended:
                final_obs[slot] = seen[slot].copy()
            final_info = self._infos(ended)
            self.episodes.begin(ended, self._draw(ended))
            seen, infos = self.episodes.observe(), self._infos(range(self.num_envs))
            infos |= {
                "final_obs": final_obs,
                "_final_obs": terminated,
                "final_info": final_info,
                "_final_info": terminated,
            }
        return seen, rewards, terminated, np.zeros(self.num_envs, np.bool_), infos

    @staticmethod
    def _split(actions: Any) -> list[Any]:
        """One action for each student out of a batch, as Gymnasium's batched spaces have it."""
        try:
            if isinstance(actions, dict):
                rows = zip(*actions.values(), strict=True)
                return [dict(zip(actions, row, strict=True)) for row in rows]
            return list(np.asarray(actions))
        except (TypeError, ValueError):  # no batch, or one of unequal parts
            raise KDGymError(f"{str(actions)[:60]!r} is no batch with one action for each student") from None

    def _infos(self, slots: Sequence[int]) -> Info:
        infos: Info = {}
        for slot in slots:
            infos = self._add_info(infos, self.episodes.info(slot), slot)
        return infos
