"""Does a policy work where it was not trained: other contexts, horizons, students and tasks?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.progress import Progress

from kd_gym.errors import KDGymError
from kd_gym.experiments.evaluate import evaluate
from kd_gym.experiments.runs import load_run, read_config
from kd_gym.experiments.setup import EnvSpec, env_arguments
from kd_gym.experiments.stats import interval, paired
from kd_gym.files import write_json
from kd_gym.plugins import nearest


@dataclass(frozen=True)
class Cell:
    """A policy on a target: its score, and the paired difference to the uniform control with half of its interval and
    the correlation of the two over seeds.
    """

    metric: str
    score: float
    gain: float
    half: float
    correlation: float

    @property
    def text(self) -> str:
        """The difference, with a star where it is beyond chance."""
        return f"{self.gain:+.3f} ± {self.half:.3f}" + ("*" if abs(self.gain) > self.half > 0 else "")


@dataclass(frozen=True)
class Transfer:
    """A matrix of cells by run and target; None where the policy's spaces do not fit, with the reason in `misfits`."""

    targets: list[str]
    cells: dict[str, list[Cell | None]]
    misfits: list[str]


def target_spec(text: str, base: EnvSpec) -> EnvSpec:
    """The env of `ENV` or `ENV:KEY=VALUE,KEY=VALUE`; what is not named is as in `base`.

    Raises:
        KDGymError: an unknown env or argument (the nearest valid one is named).
    """
    env, _, settings = text.partition(":")
    spec = EnvSpec(env, base.data, base.device, base.backend, dict(base.config))
    arguments = env_arguments(spec.id)
    config: dict[str, Any] = {}
    for part in filter(None, settings.split(",")):
        key, _, value = part.partition("=")
        if key not in arguments:
            raise nearest("argument", key, arguments)
        config[key] = yaml.safe_load(value)
    return spec.with_config(**config)


def default_targets(spec: EnvSpec) -> list[str]:
    """The id itself, held-out contexts, an episode twice as long, and a student with one layer more."""
    recipe, env = spec.family.recipe, spec.id.removesuffix("-v0")
    longer, deeper = 2 * recipe.process.horizon, f"{recipe.layers + 1}x{recipe.hidden}"
    return [env, f"{env}:context=held-out", f"{env}:horizon={longer}", f"{env}:student={deeper}"]


def transfer(
    runs: Sequence[str], base: EnvSpec, targets: Sequence[str], seeds: int = 5, progress: Progress | None = None
) -> Transfer:
    """Score trained policies beside the uniform control on every target.

    Each run keeps the matrix in `transfer.json` and the records in `transfer/`.

    Args:
        runs: run directories.
        base: an id, with data, device and backend for all targets.
        targets: `ENV:KEY=VALUE,...`; `default_targets` of the base if there are none.
        seeds: evaluation episodes of each cell.
    """
    for run in runs:
        read_config(Path(run))
    named = list(targets) or default_targets(base)
    specs = [target_spec(target, base) for target in named]
    cells: dict[str, list[Cell | None]] = {run: [] for run in runs}
    misfits = []
    for target, spec in zip(named, specs, strict=True):
        for run in runs:
            try:
                load_run(Path(run), spec)
            except KDGymError as error:
                misfits.append(f"{target}: {error}")
                cells[run].append(None)
                continue
            found = evaluate(["uniform", run], spec, seeds, progress, Path(run) / "transfer")
            metric, rows = found.metrics[0], {row.name: row for row in found.rows}
            mine, uniform = rows[run].scores(metric), rows["uniform"].scores(metric)
            apart = paired(mine, uniform)
            cells[run].append(Cell(metric, interval(mine).mean, apart.mean, apart.half, apart.correlation))
    made = Transfer(named, cells, misfits)
    for run in runs:
        told = [asdict(cell) if cell else None for cell in cells[run]]
        write_json(Path(run) / "transfer.json", {"targets": named, "seeds": seeds, "cells": told})
    return made
