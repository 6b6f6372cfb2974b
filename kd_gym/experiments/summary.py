"""Tables out of records: one for each id, context and budget, one over all ids, and the claims of a suite."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kd_gym.experiments.benchmark import Results, run_name
from kd_gym.experiments.records import Record
from kd_gym.experiments.stats import (
    Interval,
    Paired,
    interquartile_mean,
    interval,
    normalised,
    paired,
    performance_profile,
    probability_of_improvement,
)
from kd_gym.experiments.suites import Claim, Trial, trials_of
from kd_gym.files import write_json, write_text

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


# ---------------------------------------------------------------------- as Markdown and LaTeX


def heads(table: Table) -> list[str]:
    """The columns of a table; the last one is measured time, all others are the same on every run."""
    metric = next((row.metric for row in table.rows if row.records), "score")
    told = [f"{name} against {table.baseline}, r" for name in (metric, "cross-entropy")]
    return [
        "controller",
        "seeds",
        f"report {metric}",
        "normalised",
        "cross-entropy",
        "reward",
        "GFLOP",
        *told,
        "seconds",
    ]


def cells(row: Row) -> list[str]:
    """A row as texts; what was not run says so."""
    if not row.records:
        return [
            row.controller,
            "0",
            f"failed: {row.failure}".replace("|", "/") if row.failure else "not run",
            *[""] * 7,
        ]
    seeds = str(len(row.records)) if len(row.records) == row.wanted else f"{len(row.records)} of {row.wanted}"
    scaled = row.normalised()
    reward = "" if row.first.reads_reward else interval(row.values("reward")).text()
    return [
        row.name,
        seeds,
        interval(row.values(row.metric)).text(),
        interval(scaled).text(2) if scaled else "",
        interval(row.values("cross_entropy")).text(),
        reward,
        f"{np.mean(row.values('spent')) / 1e9:.3g}",
        *(_apart(row.against(name)) for name in (row.metric, "cross_entropy")),
        f"{np.mean(row.values('seconds')):.1f}",
    ]


def _apart(found: Paired | None) -> str:
    if found is None:
        return ""
    related = "" if math.isnan(found.correlation) else f", {found.correlation:.2f}"
    return found.text() + related


def provenance(table: Table) -> list[str]:
    """Where a table's numbers come from, one line for each kind."""
    lines: dict[str, list[str]] = {}
    for row in table.rows:
        for record in row.records.values():
            machine = record.machine
            told = (
                f"data {record.source} ({record.data_fingerprint}), kd-gym {machine.kd_gym} (code {machine.code}), "
                f"torch {machine.torch}, {machine.device if machine.device != 'cpu' else machine.cpu}, "
                f"{machine.threads} thread(s)"
            )
            names = lines.setdefault(told, [])
            if row.controller not in names:
                names.append(row.controller)
    if len(lines) == 1:
        return list(lines)
    return [f"{told}: {', '.join(names)}" for told, names in lines.items()]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table in LaTeX, for the booktabs package."""

    def line(row: Sequence[str]) -> str:
        return " & ".join(_escaped(cell) for cell in row) + r" \\"

    body = [r"\toprule", line(head), r"\midrule", *(line(row) for row in rows), r"\bottomrule"]
    begin = [r"\begin{table}", rf"\caption{{{_escaped(caption)}}}", rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"]
    return "\n".join([*begin, *body, r"\end{tabular}", r"\end{table}"])


def _escaped(text: str) -> str:
    text = text.replace("\\", r"\textbackslash ")
    for sign in "&%_#${}":
        text = text.replace(sign, "\\" + sign)
    return text.replace("±", r"$\pm$")


# ---------------------------------------------------------------------- over all ids


def overall(tables: Sequence[Table]) -> list[list[str]]:
    """For each controller over all default tables that have the baseline: how many, interquartile mean of normalised
    scores, probability of improvement over the baseline, and the performance profile.
    """
    plain = [t for t in tables if t.context == "default" and t.budget == "own" and t.row(t.baseline)]
    rows = []
    for name in dict.fromkeys(row.controller for t in plain for row in t.rows):
        found = [(t.row(name), t.row(t.baseline)) for t in plain]
        both = [(mine, base) for mine, base in found if mine and base and mine.normalised()]
        if both:
            scaled = [mine.normalised() for mine, _ in both]
            won = probability_of_improvement(
                [mine.values(mine.metric) for mine, _ in both], [base.values(base.metric) for _, base in both]
            )
            profile = [f"{part:.2f}" for part in performance_profile(scaled, LEVELS)]
            rows.append([name, str(len(both)), interquartile_mean(scaled).text(2), won.text(2), *profile])
    return rows


OVERALL = ("controller", "ids", "IQM of normalised scores", "P(better)", *(f"> {level:g}" for level in LEVELS))


def claim_heads(claim: Claim) -> list[str]:
    """The columns of `claim_rows`."""
    return ["where", "against", f"{claim.method} less that, r", "its cross-entropy, r", "here"]


def claim_rows(claim: Claim, tables: Sequence[Table]) -> Iterator[list[str]]:
    """A row for each table and other method: supported, not supported or undecided, with effect and interval."""
    for table in tables:
        if table.env.partition("-")[0] != claim.family:
            continue
        mine = table.row(claim.method)
        names = {row.controller for row in table.rows}
        for name in claim.others if claim.method in names else ():
            if name not in names:
                continue
            other = table.row(name)
            score = mine and other and difference(mine.records, other.records, mine.metric)
            if not (mine and other and score):
                yield [table.title, name, "", "", "not run"]
                continue
            loss = difference(mine.records, other.records, "cross_entropy")
            word = ("supported" if score.mean > 0 else "not supported") if score.sure else "undecided"
            if 0 < mine.policies < FEW and score.sure:
                word += f" for {mine.policies} training{'s' * (mine.policies > 1)}"
            seeds = len(mine.records.keys() & other.records.keys())
            yield [table.title, name, f"{_apart(score)} ({mine.metric}, {seeds} seeds)", _apart(loss), word]


def page(results: Results) -> str:
    """All tables of a suite as one Markdown page."""
    suite, tables = results.suite, tables_of(results)
    wanted = {t for stage in suite.stages for t in trials_of(suite, stage)}
    lines = [
        f"# Results: {results.folder.name}",
        "",
        suite.about,
        "",
        f"{len(results.records)} of {len(wanted)} trials were run. Mean ± half of the 95 % interval (Student's t), the "
        "seed being the unit, on `report`. `normalised`: 0 is the mean of the uniform control, 1 the teacher. "
        f"`against {suite.baseline}`: the difference over equal seeds with its interval, and r, how far the two "
        "correlate over seeds. GFLOP and seconds: one episode's, with what the controller spends. Reward is of the "
        "env's kind, and blank where the controller learns from its labels. Intervals of an agent that was trained are "
        "over evaluation seeds, not over trainings. With many comparisons some exclude zero by chance: 1 in 20.",
        "",
    ]
    for table in tables:
        lines += [f"## {table.title}", "", markdown(heads(table), [cells(row) for row in table.rows]), ""]
        lines += [*(f"- {line}" for line in provenance(table)), ""]
    if every := overall(tables):
        lines += [
            "## Over all ids (default context)",
            "",
            "IQM: the mean of the middle half of all normalised scores. P(better): how probably one run of it beats "
            f"one of {suite.baseline}. Intervals are bootstrapped, from 20 seeds on. `> x`: the part of its runs whose "
            "normalised score is above x.",
            "",
            markdown(OVERALL, every),
            "",
        ]
    for claim in suite.claims:
        lines += [f"## Claim: {claim.text}", "", markdown(claim_heads(claim), list(claim_rows(claim, tables))), ""]
    if results.failures or results.damaged:
        lines += ["## Failures", "", *(f"- {name}: {why}" for name, why in results.failures.items())]
        lines += [*(f"- {line}" for line in results.damaged), ""]
    return "\n".join(lines)


def write_tables(results: Results) -> None:
    """Write `table.md`, `table.tex` and `table.json` beside the records."""
    tables = tables_of(results)
    write_text(results.folder / "table.md", page(results))
    parts = [latex(heads(t), [cells(row) for row in t.rows], t.title) for t in tables]
    write_text(results.folder / "table.tex", "\n\n".join(parts) + "\n")
    write_json(results.folder / "table.json", [_as_json(table) for table in tables])


def _as_json(table: Table) -> dict[str, Any]:
    def told(found: Interval | None) -> dict[str, float | None] | None:
        if found is None:
            return None
        return {key: None if math.isnan(value) else value for key, value in asdict(found).items()}

    rows = []
    for row in table.rows:
        rows.append({"controller": row.controller, "seeds": len(row.records), "wanted": row.wanted})
        if row.records:
            rows[-1] |= {
                "metric": row.metric,
                "score": told(interval(row.values(row.metric))),
                "cross_entropy": told(interval(row.values("cross_entropy"))),
                "score_against_baseline": told(row.against(row.metric)),
                "cross_entropy_against_baseline": told(row.against("cross_entropy")),
                "flops": float(np.mean(row.values("spent"))),
                "seconds": float(np.mean(row.values("seconds"))),
            }
    return {
        "env": table.env,
        "context": table.context,
        "budget": table.budget,
        "baseline": table.baseline,
        "rows": rows,
    }
