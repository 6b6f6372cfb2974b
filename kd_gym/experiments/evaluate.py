"""Score controllers on one fixed list of seeds, side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from kd_gym.agents.protocol import Controller, NoConfig, with_settings
from kd_gym.envs.contexts import context_set
from kd_gym.envs.lab import Lab
from kd_gym.errors import KDGymError
from kd_gym.experiments.prepare import prepare
from kd_gym.experiments.records import record_of
from kd_gym.experiments.runs import config_for, is_run, load_run, read_config
from kd_gym.experiments.score import Episode, play, play_fixed, teacher_scores
from kd_gym.experiments.setup import EVALUATION_SEEDS, EnvSpec, agent_for, env_arguments
from kd_gym.experiments.stats import interval, paired

WITH_REWARD = "uniform+reward"  # what stands beside controllers that learn from the labels of `reward`


@dataclass(frozen=True)
class Row:
    """A controller's episodes, one for each seed.

    `overrides` are what it needs of the env that others do not have.
    """

    name: str
    episodes: list[Episode]
    fixed: bool
    reads_reward: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    def scores(self, metric: str) -> list[float]:
        """One score for each seed."""
        return [episode.scores[metric] for episode in self.episodes]


@dataclass(frozen=True)
class Comparison:
    """Several controllers on equal seeds, with all that names the numbers."""

    env: str
    context: str
    source: str
    notice: str
    data_fingerprint: str
    teachers: dict[str, str]
    teacher: dict[str, float]
    teacher_seconds: float
    metrics: tuple[str, ...]
    rows: list[Row]

    @property
    def best_fixed(self) -> Row | None:
        """The control that does not look at the student and has the best mean score."""
        fixed = [row for row in self.rows if row.fixed and not row.reads_reward]
        return max(fixed, key=lambda r: float(np.mean(r.scores(self.metrics[0]))), default=None)

    def verdict(self, name: str) -> str:
        """One plain sentence: whether a controller beats the best fixed control, with the paired difference."""
        row = next(r for r in self.rows if r.name == name)
        best = self.best_fixed
        if best is None or row.fixed:
            return ""
        difference = paired(row.scores(self.metrics[0]), best.scores(self.metrics[0]))
        words = f"{difference.text()} {self.metrics[0]}, paired over {len(row.episodes)} seeds"
        if difference.mean <= 0:
            return f"{name} does not beat the best fixed control ({best.name}): {words}"
        if np.isnan(difference.half) or difference.mean <= difference.half:
            return f"{name} is ahead of the best fixed control ({best.name}), but not beyond chance: {words}"
        return f"{name} beats the best fixed control ({best.name}): {words}"

    def as_json(self) -> dict[str, Any]:
        """Everything, with means and intervals."""
        rows = [
            {
                "name": row.name,
                "fixed": row.fixed,
                "reads_reward": row.reads_reward,
                "overrides": row.overrides,
                "scores": {m: asdict(interval(row.scores(m))) for m in self.metrics},
                "verdict": self.verdict(row.name),
                "episodes": [asdict(e) for e in row.episodes],
            }
            for row in self.rows
        ]
        head = {k: v for k, v in self.__dict__.items() if k != "rows"}
        plain: dict[str, Any] = _finite({**head, "seeds": len(self.rows[0].episodes), "rows": rows})
        return plain


def _finite(value: Any) -> Any:
    """The same with null for what JSON cannot hold: the interval of one seed, the loss of a diverged student."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def check_controller(name: str, spec: EnvSpec) -> None:
    """Raise `KDGymError` for what `load_controller` cannot load, without a student or a teacher."""
    if is_run(name):
        config_for(Path(name), spec)
    elif Path(name).exists():
        raise KDGymError(f"{name} is no run directory: it has no config.yaml")
    else:
        cls, argument, _ = agent_for(name, spec)
        if getattr(cls, "learns", False):
            train = f"kd-gym train --env {spec.env} --agent {name}"
            raise KDGymError(f"{name} has to learn first: {train}, then give its run")
        config = getattr(cls, "Config", NoConfig)()
        if fields(config):
            with_settings(config, argument)


def load_controller(name: str, spec: EnvSpec, config: Any = None) -> tuple[Controller, EnvSpec]:
    """A controller by name, or the best policy of a run directory, and the env as it wants it."""
    check_controller(name, spec)
    if is_run(name):
        return load_run(Path(name), spec)
    cls, argument, fitted = agent_for(name, spec)
    return cls(fitted.make(), seed=0, config=config, argument=argument), fitted


def evaluate(
    controllers: Sequence[str],
    spec: EnvSpec,
    seeds: int = 5,
    progress: Progress | None = None,
    records: Path | None = None,
) -> Comparison:
    """Score controllers (names or run directories) on the same seeds of the same id.

    Args:
        controllers: what to compare.
        spec: the env; its context says whether to score on the clean task or on (held-out) contexts.
        seeds: how many, from the fixed list that no training draws from.
        records: a folder for a record of every episode; by default, only those of runs are kept, in the run.
    """
    context = spec.config.get("context", "default")
    context_set(context)
    for name in controllers:
        check_controller(name, spec)
    prepare(spec, progress)
    loaded = [(name, *load_controller(name, spec)) for name in dict.fromkeys(controllers)]
    if (
        any(getattr(controller, "reads_reward", False) for _, controller, _ in loaded)
        and WITH_REWARD not in controllers
    ):
        loaded.append((WITH_REWARD, *load_controller(WITH_REWARD, spec)))
    runs = {name: Path(name) for name in controllers if is_run(name)}
    return compare(loaded, context, seeds, progress, records, runs)


def overrides_of(controller: Controller, spec: EnvSpec) -> dict[str, Any]:
    """What a controller needs of its env, where that is not the env's default."""
    defaults = {name: parameter.default for name, parameter in env_arguments(spec.env).items()}
    needed = getattr(controller, "options", {})
    return {key: value for key, value in needed.items() if key in defaults and defaults[key] != value}


def compare(
    loaded: Sequence[tuple[str, Controller, EnvSpec]],
    context: str,
    seeds: int,
    progress: Progress | None = None,
    records: Path | None = None,
    runs: Mapping[str, Path] | None = None,
) -> Comparison:
    """`evaluate` for controllers that are loaded already; `runs` says by name where trained policies come from."""
    if seeds < 1:
        raise KDGymError(f"at least one seed is needed, not {seeds}")
    bar = progress.add_task("scoring", total=len(loaded) * seeds) if progress else None
    rows = []
    for name, controller, spec in loaded:
        env = spec.make()
        run = (runs or {}).get(name)
        told = read_config(run).agent if run else name
        folder = records or (run / "records" if run else None)
        # controllers of one's own may change under their names, so their scores are not kept
        kept = not getattr(controller, "learns", False) and type(controller).__module__.startswith("kd_gym.")
        episodes = []
        for seed in range(EVALUATION_SEEDS, EVALUATION_SEEDS + seeds):
            if kept:
                episodes.append(play_fixed(env, controller, name, {"id": spec.id, **spec.kwargs}, seed))
            else:
                episodes.append(play(env, controller, seed))
            if folder is not None:
                record = record_of(spec, controller, told, episodes[-1], run)
                record.write(folder / record.file_name)
            if progress and bar is not None:
                progress.update(bar, advance=1, description=f"scoring {Path(name).name} on report")
        fixed, reads = (getattr(controller, flag, False) for flag in ("fixed", "reads_reward"))
        rows.append(Row(name, episodes, fixed, reads, overrides_of(controller, spec)))
    lab: Lab = loaded[0][2].lab()
    return Comparison(
        env=loaded[0][2].id,
        context=context,
        source=lab.data.source,
        notice=lab.data.notice,
        data_fingerprint=lab.data.fingerprint,
        teachers={teacher.spec.name: teacher.hash for teacher in lab.made},
        teacher=teacher_scores(lab.teacher, "report", lab.device),
        teacher_seconds=sum(teacher.seconds for teacher in lab.made),
        metrics=lab.data.task.metrics,
        rows=rows,
    )


def write_comparison(comparison: Comparison, file: Path) -> None:
    """The comparison as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(comparison.as_json(), indent=1) + "\n")
