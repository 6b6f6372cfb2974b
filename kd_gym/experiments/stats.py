"""Means and intervals; the seed is the unit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its 95 % interval (Student's t; not a number for one value)."""

    mean: float
    half: float

    def text(self, digits: int = 3) -> str:
        """`0.812 ± 0.010`."""
        if np.isnan(self.half):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


def interval(values: Sequence[float]) -> Interval:
    """The mean of one value for each seed, with its interval."""
    data = np.asarray(values, np.float64)
    if len(data) < 2:
        return Interval(float(data.mean()), float("nan"))
    half = stats.t.ppf(0.975, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data))
    return Interval(float(data.mean()), float(half))


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The mean difference over equal seeds, with its interval."""
    return interval((np.asarray(first) - np.asarray(second)).tolist())
