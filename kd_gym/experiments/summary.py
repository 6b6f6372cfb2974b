"""What records come to: a table for each id, context and budget, one over all ids, and verdicts on a suite's claims."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kd_gym.experiments.benchmark import Results, run_name
from kd_gym.experiments.records import Record
from kd_gym.experiments.stats import (
    Estimate,
    Paired,
    interquartile_mean,
    normalised,
    paired,
    performance_profile,
    probability_of_improvement,
)
from kd_gym.experiments.suites import Claim, Trial, trials_of

FEW = 5  # trainings, below which a claim about a kind of agent is one about these policies
LEVELS = tuple(round(-1 + 0.25 * i, 2) for i in range(9))  # of normalised scores


@dataclass(frozen=True)
class Row:
    """A controller in one table: its records by seed, and how it compares with the baseline on the seeds of both."""

    controller: str
    wanted: int
    records: dict[int, Record]
    baseline: dict[int, Record]
    uniform: dict[int, Record]
    failure: str

    @property
    def metric(self) -> str:
        """The task's first one."""
        return self.first.metrics[0]

    @property
    def first(self) -> Record:
        """Any of the records."""
        return next(iter(self.records.values()))

    def values(self, name: str) -> list[float]:
        """A number of each seed's episode: a metric, or a field by its name."""
        return [value_of(record, name) for record in self.records.values()]

    def against(self, name: str) -> Paired | None:
        """The paired difference to the baseline; None where they share no seed, or it is the baseline."""
        return difference(self.records, self.baseline, name) if self.records is not self.baseline else None

    def normalised(self) -> list[float]:
        """Each seed's score between the uniform control's mean (0) and the teacher's score (1); none where the uniform
        control was not run, or the teacher is no better.
        """
        teacher = self.first.teacher.get(self.metric, 0.0)
        base = float(np.mean([value_of(r, self.metric) for r in self.uniform.values()])) if self.uniform else teacher
        return [normalised(v, base, teacher) for v in self.values(self.metric)] if teacher > base else []

    @property
    def policies(self) -> int:
        """How many trained policies its records are of; none, if it does not learn."""
        return len({record.policy for record in self.records.values()}) if self.first.trained else 0

    @property
    def name(self) -> str:
        """The controller, and of how many trainings its numbers are."""
        if not (self.records and self.policies):
            return self.controller
        return f"{self.controller} ({self.policies} training{'s' * (self.policies > 1)})"


@dataclass(frozen=True)
class Table:
    """All controllers on one id in one context with one budget."""

    env: str
    context: str
    budget: int | str
    baseline: str
    rows: list[Row]

    @property
    def title(self) -> str:
        """Names it."""
        told = "" if self.budget == "own" else f", budget: {self.budget}" + (" updates" * isinstance(self.budget, int))
        return f"{self.env}, context {self.context}{told}"

    def row(self, controller: str) -> Row | None:
        """A controller's row, if it has records."""
        return next((row for row in self.rows if row.controller == controller and row.records), None)


def value_of(record: Record, name: str) -> float:
    """A metric's score, or a field of the episode."""
    episode = record.episode
    found = episode.scores.get(name)
    return float(getattr(episode, name) if found is None else found)


def difference(first: dict[int, Record], second: dict[int, Record], name: str) -> Paired | None:
    """Over the seeds that both have on the same data with the same teachers; None where there are none."""

    def told(record: Record) -> tuple[Any, ...]:
        return record.source, record.data_fingerprint, record.teachers

    seeds = sorted(seed for seed in first.keys() & second.keys() if told(first[seed]) == told(second[seed]))
    if not seeds:
        return None
    return paired([value_of(first[s], name) for s in seeds], [value_of(second[s], name) for s in seeds])


def tables_of(results: Results) -> list[Table]:
    """Every table that the suite asks for, run or not."""
    suite = results.suite
    cells: dict[tuple[str, str, int | str], dict[str, list[Trial]]] = {}
    for stage in suite.stages:
        for trial in trials_of(suite, stage):
            by_controller = cells.setdefault((trial.env, trial.context, trial.budget), {})
            by_controller.setdefault(trial.controller, []).append(trial)
            if isinstance(trial.budget, str) and trial.budget != "own":  # beside the one whose cost they have
                dear = replace(trial, controller=trial.budget.removeprefix("cost of "), budget="own")
                by_controller.setdefault(dear.controller, []).append(dear)
    return [Table(*place, suite.baseline, _rows(results, by_controller)) for place, by_controller in cells.items()]


def _rows(results: Results, by_controller: dict[str, list[Trial]]) -> list[Row]:
    found = {
        name: {t.seed: results.records[t] for t in dict.fromkeys(trials) if t in results.records}
        for name, trials in by_controller.items()
    }
    base, uniform = found.get(results.suite.baseline, {}), found.get("uniform", {})
    rows = []
    for name, trials in by_controller.items():
        keys = {key for t in trials for key in (t.key, run_name(results.suite, t), t.env)}
        failure = next((why for key, why in results.failures.items() if key in keys), "")
        rows.append(Row(name, len(set(trials)), found[name], base, uniform, failure))
    return rows


@dataclass(frozen=True)
class Overall:
    """A controller over all ids: its normalised scores on each, their interquartile mean, how probably a run of it
    beats one of the baseline, and the part of its runs above each of `LEVELS`.
    """

    controller: str
    scores: list[list[float]]
    middle: Estimate
    better: Estimate
    profile: list[float]


def overall(tables: Sequence[Table]) -> list[Overall]:
    """Every controller over the default tables that have the baseline and a teacher that is better than it."""
    plain = [t for t in tables if t.context == "default" and t.budget == "own" and t.row(t.baseline)]
    found = []
    for name in dict.fromkeys(row.controller for t in plain for row in t.rows):
        pairs = [(t.row(name), t.row(t.baseline)) for t in plain]
        both = [(mine, base) for mine, base in pairs if mine and base and mine.normalised()]
        if both:
            scaled = [mine.normalised() for mine, _ in both]
            better = probability_of_improvement(
                [mine.values(mine.metric) for mine, _ in both], [base.values(base.metric) for _, base in both]
            )
            profile = performance_profile(scaled, LEVELS)
            found.append(Overall(name, scaled, interquartile_mean(scaled), better, profile))
    return found


@dataclass(frozen=True)
class Verdict:
    """What one table says of a claim about a method and another one; nothing where one of them was not run.

    Attributes:
        score: the method's less the other's, over the seeds of both, in the task's `metric`.
        loss: the same in cross-entropy.
        word: supported, not supported, undecided or not run.
    """

    where: str
    other: str
    score: Paired | None
    loss: Paired | None
    metric: str
    seeds: int
    word: str


def verdicts(claim: Claim, tables: Sequence[Table]) -> Iterator[Verdict]:
    """One for each table of the claim's family and each other method in it."""
    for table in tables:
        names = {row.controller for row in table.rows}
        if table.env.partition("-")[0] != claim.family or claim.method not in names:
            continue
        for other in claim.others:
            if other in names:
                yield _verdict(table, claim.method, other)


def _verdict(table: Table, method: str, other: str) -> Verdict:
    mine, its = table.row(method), table.row(other)
    score = difference(mine.records, its.records, mine.metric) if mine and its else None
    if not (mine and its and score):
        return Verdict(table.title, other, None, None, "", 0, "not run")
    word = ("supported" if score.mean > 0 else "not supported") if score.sure else "undecided"
    if 0 < mine.policies < FEW and score.sure:
        word += f" for {mine.policies} training{'s' * (mine.policies > 1)}"
    loss = difference(mine.records, its.records, "cross_entropy")
    return Verdict(table.title, other, score, loss, mine.metric, len(mine.records.keys() & its.records.keys()), word)
