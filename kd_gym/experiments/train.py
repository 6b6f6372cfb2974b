"""Train an agent in an env, keep its best policy, and score it beside the fixed controls."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress
from torch.utils.tensorboard.writer import SummaryWriter

from kd_gym.agents.heuristics import Single
from kd_gym.agents.protocol import Controller
from kd_gym.analysis.figures import decisions_worth
from kd_gym.envs.faces import TRAIN_SEEDS
from kd_gym.errors import KDGymError
from kd_gym.experiments.evaluate import Comparison, compare, load_controller
from kd_gym.experiments.prepare import prepare
from kd_gym.experiments.probe import probe
from kd_gym.experiments.runs import RunConfig, checkpoint_path, load_run, read_config, save_checkpoint
from kd_gym.experiments.score import play
from kd_gym.experiments.setup import SELECTION_SEEDS, EnvSpec, agent_for
from kd_gym.experiments.watch import Watch, writer_for
from kd_gym.files import write_json, write_text

REVIEW_EPISODES = 20  # episodes between two looks at `select`, which are checkpoints too
REVIEW_SEEDS = 2


@dataclass(frozen=True)
class TrainResult:
    """A finished training: its folder, and the final table."""

    folder: Path
    comparison: Comparison
    seconds: float


def train(
    env: str,
    agent: str,
    steps: int | None = None,
    num_envs: int = 4,
    seed: int = 0,
    data: str = "auto",
    device: str = "auto",
    backend: str = "full",
    out: Path | None = None,
    eval_seeds: int = 3,
    env_config: dict[str, Any] | None = None,
    agent_config: dict[str, Any] | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> TrainResult:
    """Train an agent.

    Args:
        env: an id, with or without `-v0`.
        agent: a name, or `module:Class`.
        steps: decisions of all students together; a hundred episodes by default.
        num_envs: students trained at the same time.
        seed: of the agent and of all episodes.
        data: `auto`, `hub`, `embedded` or a path.
        out: the run directory; a new one under `runs/` by default. It must be empty.
        eval_seeds: episodes of each controller in the final table.
        env_config: keyword arguments of the env.
        agent_config: fields of the agent's `Config`.
        command: the command line, kept beside the results.
    """
    if not 0 <= seed < TRAIN_SEEDS:
        raise KDGymError(f"the seed must lie between 0 and {TRAIN_SEEDS - 1}, not {seed}")
    if min(num_envs, eval_seeds, 1 if steps is None else steps) < 1:
        raise KDGymError("--num-envs, --steps and --eval-seeds must be at least 1")
    cls, _, spec = agent_for(agent, EnvSpec(env, data, device, backend, dict(env_config or {})))  # type: ignore[arg-type]
    if not getattr(cls, "learns", False):
        raise KDGymError(f"{agent} does not learn; score it with: kd-gym evaluate {agent} --env {env}")
    folder = out or Path("runs") / f"{spec.id}-{agent.replace(':', '-')}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KDGymError(f"{folder} is not empty; give another --out, or go on with: kd-gym train --resume {folder}")
    prepare(spec, progress)
    total = steps or 100 * spec.family.decisions
    config = RunConfig(
        spec.id,
        agent,
        total,
        num_envs,
        seed,
        data,
        device,
        backend,
        eval_seeds,
        spec.config,
        agent_config or {},
    )
    config.controller(spec.make())  # a setting that is wrong shows before anything is written
    config.write(folder)
    write_text(folder / "command.txt", command + "\n")
    return _run(config, folder, progress)


def resume(folder: Path, progress: Progress | None = None) -> TrainResult:
    """Go on with an interrupted training from its last checkpoint, at an episode boundary."""
    config = read_config(folder)
    prepare(config.spec, progress)
    return _run(config, folder, progress)


def _run(config: RunConfig, folder: Path, progress: Progress | None) -> TrainResult:
    begin = time.perf_counter()
    controller = config.controller(config.spec.make())
    done, best = 0, -math.inf
    if kept := checkpoint_path(folder, "checkpoint"):
        controller.load(kept)
        about = json.loads((kept / "about.json").read_text())
        done, best = about["steps"], about["best"] if about["best"] is not None else -math.inf
    if done < config.steps and getattr(controller, "learns", False):
        done = learn(config, controller, folder, done, best, progress)
    comparison = final_table(config, folder, progress)
    _note_settings(config, folder, comparison)
    seconds = time.perf_counter() - begin
    write_json(folder / "result.json", {**comparison.as_json(), "steps": done, "seconds": round(seconds, 1)})
    return TrainResult(folder, comparison, seconds)


def learn(
    config: RunConfig,
    controller: Controller,
    folder: Path,
    done: int = 0,
    best: float = -math.inf,
    progress: Progress | None = None,
) -> int:
    """Learn the remaining steps; look at `select` now and then, keep the best policy and the last state.

    Args:
        config: of the run.
        controller: the agent, as far as it has learnt.
        folder: the run directory.
        done: steps that it has learnt already.
        best: its best score on `select` so far.

    Returns:
        The steps that it has learnt in the end.
    """
    judge = config.spec.make()
    metric = judge.lab.data.task.metrics[0]

    def review(steps: int) -> str:
        nonlocal best
        episodes = [play(judge, controller, SELECTION_SEEDS + i, "select") for i in range(REVIEW_SEEDS)]
        score = float(np.mean([episode.scores[metric] for episode in episodes]))
        writer.add_scalar(f"eval/select_{metric}", score, steps)
        if score > best:
            best = score
            save_checkpoint(controller, folder, "best", {"steps": steps, f"select_{metric}": score})
        save_checkpoint(controller, folder, "checkpoint", {"steps": steps, "best": best})
        return f"select {metric} {score:.3f} (best {best:.3f})"

    task = progress.add_task("training", total=config.steps, completed=done) if progress else None
    with writer_for(folder, done) as writer:
        bar = (progress, task) if progress and task is not None else None
        watch = Watch(config.spec.make_vec(config.num_envs), writer, REVIEW_EPISODES, review, done, bar)
        controller.learn(watch, config.steps - done, folder)
        done = max(watch.steps, config.steps)
        review(done)
        told = probe(judge, controller, SELECTION_SEEDS)
        writer.add_scalar("policy/advantage_over_uniform", float(np.mean(told.advantages)), done)
        writer.add_figure(
            "policy/worth_of_decisions", decisions_worth(told.advantages, told.values, told.rewards), done
        )
        if told.values:
            writer.add_scalar("policy/value_at_start", told.values[0], done)
            writer.add_scalar("policy/return_from_start", sum(told.rewards), done)
    return done


def _note_settings(config: RunConfig, folder: Path, comparison: Comparison) -> None:
    """The settings and what they led to, for TensorBoard's table of runs."""
    settings = {"env": config.env, "agent": config.agent, "steps": config.steps, "seed": config.seed}
    chosen = {**config.env_config, **asdict(config.controller(config.spec.make()).config)}
    own = comparison.rows[0]
    scores = {f"score/report_{metric}": float(np.mean(own.scores(metric))) for metric in comparison.metrics}
    with SummaryWriter(str(folder)) as writer:
        told = {key: value if isinstance(value, int | float | bool) else str(value) for key, value in chosen.items()}
        writer.add_hparams({**settings, **told}, scores, run_name=".", global_step=config.steps)


def final_table(config: RunConfig, folder: Path, progress: Progress | None = None) -> Comparison:
    """The run's best policy beside uniform, random and each single knowledge type, on `report`."""
    spec = config.spec
    own, fitted = load_run(folder, spec)
    base = EnvSpec(spec.env, spec.data, spec.device, spec.backend, {**spec.config, "action": "weights"})
    names = ["uniform", "random"]
    if spec.family_name in Single.fits:
        names += [f"single:{name}" for name in own.family.labels]
    fixed = [(name, *load_controller(name, base)) for name in names]
    context = spec.config.get("context", "default")
    loaded, runs = [(config.agent, own, fitted), *fixed], {config.agent: folder}
    return compare(loaded, context, config.eval_seeds, progress, folder / "records", runs)
