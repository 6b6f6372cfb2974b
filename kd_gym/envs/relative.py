"""The uniform control's path with a given seed: what the `relative` reward subtracts. Run once and stored."""

import functools
import json
from dataclasses import asdict

from kd_gym.backend.state import Context
from kd_gym.envs.family import Family
from kd_gym.envs.lab import Lab
from kd_gym.files import cache_dir, digest, write_json

_memory: dict[str, list[float]] = {}


def uniform_metrics(lab: Lab, family: Family, context: Context, seed: int, every: int) -> list[float]:
    """Cross-entropy on the reward rows under the uniform control: at first, after every so many updates, at the end."""
    teachers = [teacher.hash for teacher in lab.teachers(context.teachers)]
    selection = family.uniform(1).selection
    drawn = selection and [selection.pool, selection.how, selection.correct]
    key = digest(lab.fingerprint(), teachers, asdict(context), seed, every, drawn)
    if key in _memory:
        return _memory[key]
    file = cache_dir() / "uniform" / f"{key}.json"
    stored = not lab.data.source.startswith("tiny:")
    if stored and file.exists():
        _memory[key] = json.loads(file.read_text())
    else:
        _memory[key] = _run(lab, family, context, seed, every)
        if stored:
            write_json(file, _memory[key])
    return _memory[key]


def _run(lab: Lab, family: Family, context: Context, seed: int, every: int) -> list[float]:
    process = lab.process(1, [context.teachers])
    measure = functools.partial(
        process.evaluate, lab.data.split("reward").to(lab.device).batches(lab.recipe.reward_rows)
    )
    process.reset([seed], [context])
    path = [float(measure().cross_entropy)]
    while left := lab.recipe.process.horizon - int(process.update):
        process.advance(family.uniform(1), min(every, left))
        path.append(float(measure().cross_entropy))
    return path
