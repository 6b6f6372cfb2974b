"""Statistics of scores; the seed is the unit.

Means have Student's t intervals, which are exact for normal seeds. Interquartile means, probabilities of
improvement and performance profiles are those of Agarwal et al. (2021, "Deep reinforcement learning at the edge of the
statistical precipice"); their intervals are bootstrapped, and a bootstrap of few seeds covers less than it says, so
there is none below `BOOTSTRAP_SEEDS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BOOTSTRAP_SEEDS = 20
RESAMPLES = 2000
Values = Sequence[float]


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


@dataclass(frozen=True)
class Paired(Interval):
    """A mean difference over equal seeds, with its interval, and the correlation of the two that makes it narrow."""

    correlation: float

    @property
    def sure(self) -> bool:
        """Whether the interval excludes zero; one of no width (equal differences by rounded scores) says nothing."""
        return abs(self.mean) > self.half > 0


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrapped 95 % interval, `low` and `high` being None for fewer than 20 seeds."""

    value: float
    low: float | None
    high: float | None

    def text(self, digits: int = 3) -> str:
        """`0.81 [0.79, 0.83]`."""
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def interval(values: Values) -> Interval:
    """The mean of one value for each seed, with its interval."""
    data = np.asarray(values, np.float64)
    if len(data) < 2:
        return Interval(float(data.mean()), float("nan"))
    half = stats.t.ppf(0.975, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data))
    return Interval(float(data.mean()), float(half))


def paired(first: Values, second: Values) -> Paired:
    """The mean of `first - second` over equal seeds."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    apart = interval((a - b).tolist())
    if np.ptp(a) == 0 or np.ptp(b) == 0:  # also of one seed; a standard deviation of equal values may be 1e-17
        return Paired(apart.mean, apart.half, float("nan"))
    correlation = ((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())
    return Paired(apart.mean, apart.half, float(correlation))


def normalised(score: float, uniform: float, teacher: float) -> float:
    """0 for the uniform control's score, 1 for the teacher's; not a number where the teacher is no better."""
    return (score - uniform) / (teacher - uniform) if teacher > uniform else float("nan")


def _iqm(values: NDArray[np.float64]) -> float:
    return float(stats.trim_mean(values, 0.25, axis=None))


def _bootstrap(samples: Sequence[Values], statistic: Callable[..., float]) -> Estimate:
    data = [np.asarray(sample, np.float64) for sample in samples]
    value = statistic(*data)
    if min(map(len, data)) < BOOTSTRAP_SEEDS or all(np.ptp(sample) == 0 for sample in data):
        return Estimate(value, None, None)
    found = stats.bootstrap(
        *(data, statistic),
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),  # the same table from the same scores
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def interquartile_mean(tasks: Sequence[Values]) -> Estimate:
    """The mean of the middle half of all scores; seeds are drawn again within each task."""
    return _bootstrap(tasks, lambda *drawn: _iqm(np.concatenate(drawn)))


def probability_of_improvement(first: Sequence[Values], second: Sequence[Values]) -> Estimate:
    """How probably a run of `first` scores higher than one of `second` on the same task, the mean over tasks."""

    def won(*drawn: NDArray[np.float64]) -> float:
        pairs = zip(drawn[: len(first)], drawn[len(first) :], strict=True)
        return float(np.mean([(np.sign(a[:, None] - b[None]) + 1).mean() / 2 for a, b in pairs]))

    return _bootstrap([*first, *second], won)


def performance_profile(tasks: Sequence[Values], levels: Values) -> list[float]:
    """The part of all runs that scores above each level, every task weighing the same."""
    return [float(np.mean([np.mean(np.asarray(task) > level) for task in tasks])) for level in levels]
