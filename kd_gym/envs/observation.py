"""The observation vector: one table that both builds it and documents it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[np.float32]
CLS_BOUND = 10.0


@dataclass(frozen=True)
class Feature:
    """One part of the observation: `size` numbers between `low` and `high`."""

    name: str
    size: int
    low: float
    high: float
    meaning: str


def features(
    control: Sequence[str],
    knowledge: Sequence[str],
    teachers: Sequence[str],
    student: int | None = None,
    teacher: int | None = None,
) -> list[Feature]:
    """The parts of the vector, in order, from the names of the control's weights, of losses and of teachers.

    With the two widths, the mean [CLS] states of the coming batch too.
    """
    k, of, by = len(knowledge), ", ".join(knowledge), f" ({', '.join(teachers)})" if len(teachers) > 1 else ""
    table = [
        Feature("progress", 1, 0, 1, "updates done / updates of the episode"),
        Feature("budget_left", 1, 0, 1, "1 - progress"),
        Feature("control", len(control), 0, 1, f"weights of the last decision ({', '.join(control)})"),
        Feature("loss", k, 0, 1, f"smoothed loss / its scale, x / (1 + x) ({of})"),
        Feature("cross_entropy", 1, 0, 1, "last cross-entropy on the reward split, x / (1 + x)"),
        Feature("slope", 1, -1, 1, "its last change, 10 times, clipped"),
        Feature("accuracy", 1, 0, 1, "last accuracy on the reward split"),
        Feature("agreement", len(teachers), 0, 1, f"share of samples on which student and teacher agree{by}"),
        Feature("teacher_accuracy", len(teachers), 0, 1, f"share on which teacher and (noisy) label agree{by}"),
        Feature("entropy", 1, 0, 1, "entropy of the student / log(classes), on training batches"),
        Feature("gradient_norm", 1, 0, 1, "norm of the student's gradient, x / (1 + x)"),
        Feature("learning_rate", 1, 0, 1, "place in the learning rate's schedule: rate / its peak"),
    ]
    if student is not None and teacher is not None:
        bound = CLS_BOUND
        table.append(Feature("student_cls", student, -bound, bound, "mean student [CLS] of the coming batch"))
        table.append(Feature("teacher_cls", teacher, -bound, bound, "mean teacher [CLS] of the coming batch"))
    return table


def space(table: list[Feature]) -> spaces.Box:
    """The box of the vector."""
    return spaces.Box(*_bounds(table), dtype=np.float32)


def _bounds(table: list[Feature]) -> tuple[Array, Array]:
    sizes, ends = [f.size for f in table], np.array([(f.low, f.high) for f in table], np.float32)
    low, high = ends.repeat(sizes, axis=0).T
    return low, high


def vector(table: list[Feature], values: dict[str, NDArray[np.floating]]) -> Array:
    """The vectors [N, F] from each part's values [N] or [N, size], clipped to its bounds.

    Something that is not finite (of a student that failed) becomes the upper bound.
    """
    columns = [np.asarray(values[feature.name], np.float32).reshape(-1, feature.size) for feature in table]
    low, high = _bounds(table)
    return np.maximum(np.fmin(np.concatenate(columns, axis=1), high), low)  # fmin takes the bound where there is NaN


def rows_space(single: spaces.Box, count: int) -> spaces.Box:
    """The box of `count` rows under each other."""
    return spaces.Box(np.tile(single.low, (count, 1)), np.tile(single.high, (count, 1)), dtype=np.float32)


def rows(table: list[Feature], values: dict[str, NDArray[np.floating]]) -> Array:
    """Rows [N, R, F] from each part's values [N, R] or [N, R, size], clipped to its bounds."""
    first = next(iter(values.values()))
    flat = {name: value.reshape(first.shape[0] * first.shape[1], -1) for name, value in values.items()}
    return vector(table, flat).reshape(*first.shape[:2], -1)


def squash(value: NDArray[np.floating]) -> NDArray[np.floating]:
    """x / (1 + x): non-negative numbers into [0, 1]."""
    value = np.nan_to_num(np.asarray(value, np.float64), nan=1e9, posinf=1e9)
    return value / (1 + value)


def table_text(table: list[Feature]) -> str:
    """The observation table in Markdown."""
    lines = ["| index | name | range | meaning |", "|---|---|---|---|"]
    start = 0
    for f in table:
        index = f"{start}" if f.size == 1 else f"{start}-{start + f.size - 1}"
        lines.append(f"| {index} | {f.name} | [{f.low:g}, {f.high:g}] | {f.meaning} |")
        start += f.size
    return "\n".join(lines)
