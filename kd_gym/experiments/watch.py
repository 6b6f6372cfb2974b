"""What a training shows and keeps, whatever agent it trains: TensorBoard, progress, checkpoints, the best policy."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TaskID
from torch.utils.tensorboard.writer import SummaryWriter

from kd_gym.analysis.figures import weights_by_context
from kd_gym.envs.sb3 import unbatch


class Watch(gym.vector.VectorWrapper[Any, Any, Any]):
    """A vector env that reports on its own episodes.

    TensorBoard tags: `student/*`, `reward/*` (return, and the sum of each of its terms), `cost/*` at the end of every
    episode; `policy/*` (mean and spread of each weight, entropy of the weights, and a figure of weight over progress by
    context) after every `every` episodes; `review` is called before the step that follows.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
        writer: SummaryWriter,
        every: int,
        review: Callable[[int], str],
        done: int = 0,
        progress: tuple[Progress, TaskID] | None = None,
    ) -> None:
        super().__init__(env)
        self.writer = writer
        self.every = every
        self.review = review
        self.steps = done
        self.progress = progress
        self.ended = 0
        self.due = False
        self.words = ""
        self.returns = np.zeros(env.num_envs)
        self.paths: list[list[dict[str, float]]] = [[] for _ in range(env.num_envs)]
        self.terms: list[Counter[str]] = [Counter() for _ in range(env.num_envs)]
        self.recent: list[tuple[str, list[dict[str, float]]]] = []  # context and weights of each episode

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the env below and forget unfinished episodes."""
        self.returns[:] = 0
        self.paths = [[] for _ in range(self.num_envs)]
        self.terms = [Counter() for _ in range(self.num_envs)]
        return super().reset(**kwargs)

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step the env below and report."""
        if self.due:  # now that the agent has also learnt from the end of those episodes
            self.due = False
            self.words = self.review(self.steps)
        seen, rewards, terminated, truncated, infos = self.env.step(actions)
        self.steps += self.num_envs
        self.returns += rewards
        before = self.ended
        for slot in range(self.num_envs):
            over = bool(terminated[slot] or truncated[slot])
            info = unbatch(infos["final_info"] if over else infos, slot)
            self.paths[slot].append(info["control"])
            self.terms[slot].update(info["reward_terms"])
            if over:
                self._episode(slot, info)
        if self.progress:
            bar, task = self.progress
            bar.update(task, completed=self.steps, description=f"training  {self.words}")
        if self.ended // self.every > before // self.every:
            self._policy()
            self.due = True
        return seen, rewards, terminated, truncated, infos

    def _episode(self, slot: int, info: dict[str, Any]) -> None:
        self.ended += 1
        values = {
            "reward/return": self.returns[slot],
            "student/cross_entropy": info["reward_split"]["cross_entropy"],
            "student/accuracy": info["reward_split"]["accuracy"],
            "student/failures": float(bool(info["failure"])),
            "cost/gflops": info["flops"] / 1e9,
            **{f"student/{name}": value for name, value in info["student"].items()},
            **{f"student/loss_{name}": value for name, value in info["losses"].items()},
            **{f"reward/{name}": value for name, value in self.terms[slot].items()},
        }
        seconds = self.unwrapped.episodes.process.cost.seconds  # type: ignore[attr-defined]
        values |= {f"cost/{part}_seconds": spent for part, spent in seconds.items()}
        for tag, value in values.items():
            if math.isfinite(value):
                self.writer.add_scalar(tag, value, self.steps)
        self.recent.append((info["context"], self.paths[slot]))
        self.paths[slot], self.terms[slot] = [], Counter()
        self.returns[slot] = 0

    def _policy(self) -> None:
        names = list(self.recent[0][1][0])
        by_context: dict[str, list[NDArray[np.float64]]] = {}
        for context, path in self.recent:
            by_context.setdefault(context, []).append(np.array([[step[name] for name in names] for step in path]))
        table = np.concatenate([path for paths in by_context.values() for path in paths])
        for i, name in enumerate(names):
            self.writer.add_scalar(f"policy/weight_{name}_mean", table[:, i].mean(), self.steps)
            self.writer.add_scalar(f"policy/weight_{name}_spread", table[:, i].std(), self.steps)
        self.writer.add_scalar("policy/entropy", entropy_of(table), self.steps)
        figure = weights_by_context(names, dict(sorted(by_context.items())))
        self.writer.add_figure("policy/weights_over_progress", figure, self.steps)
        self.recent = []


def entropy_of(weights: NDArray[np.float64]) -> float:
    """The mean entropy of controls [decisions, D], each taken as a distribution; 1 is uniform, 0 a single weight."""
    parts = weights / np.maximum(weights.sum(1, keepdims=True), 1e-12)
    return float(-(parts * np.log(np.maximum(parts, 1e-12))).sum(1).mean() / max(math.log(weights.shape[1]), 1e-12))


LAYOUT = {
    "policy": {"weights": ["Multiline", [r"policy/weight_.*_mean"]], "entropy": ["Multiline", ["policy/entropy"]]},
    "reward": {"return": ["Multiline", ["reward/return"]], "terms": ["Multiline", [r"reward/(?!return).*"]]},
    "student": {"losses": ["Multiline", [r"student/loss_.*"]], "select": ["Multiline", [r"eval/select_.*"]]},
    "cost": {"seconds": ["Multiline", [r"cost/.*_seconds"]]},
}


def writer_for(folder: Path, done: int = 0) -> SummaryWriter:
    """The TensorBoard writer of a run; what an interrupted one wrote after step `done` is no longer shown.

    A new run purges nothing: TensorBoard reads a folder's files in the order of their names, in which that of the
    agent's own writer may come first.
    """
    writer = SummaryWriter(str(folder), flush_secs=10, purge_step=done + 1 if done else None)
    writer.add_custom_scalars(LAYOUT)
    return writer
