"""The tables of a benchmark as Markdown, LaTeX and JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from kd_gym.experiments.benchmark import Results
from kd_gym.experiments.stats import Paired, interval
from kd_gym.experiments.suites import Claim, trials_of
from kd_gym.experiments.summary import LEVELS, Overall, Row, Table, overall, tables_of, verdicts
from kd_gym.files import write_json, write_text

OVERALL = ("controller", "ids", "IQM of normalised scores", "P(better)", *(f"> {level:g}" for level in LEVELS))


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
    return text.replace("±", r"$\pm$").replace(">", "$>$")


def overall_cells(line: Overall) -> list[str]:
    """The texts under `OVERALL`."""
    shares = [f"{part:.2f}" for part in line.profile]
    return [line.controller, str(len(line.scores)), line.middle.text(2), line.better.text(2), *shares]


def claim_heads(claim: Claim) -> list[str]:
    """The columns of `claim_cells`."""
    return ["where", "against", f"{claim.method} less that, r", "its cross-entropy, r", "here"]


def claim_cells(claim: Claim, tables: Sequence[Table]) -> list[list[str]]:
    """Each table's verdict on a claim, as texts."""
    return [
        [
            v.where,
            v.other,
            f"{_apart(v.score)} ({v.metric}, {v.seeds} seeds)" if v.score else "",
            _apart(v.loss),
            v.word,
        ]
        for v in verdicts(claim, tables)
    ]


def _page(results: Results, tables: Sequence[Table], every: Sequence[Overall]) -> str:
    """All tables of a suite as one Markdown page."""
    suite = results.suite
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
    if every:
        lines += [
            "## Over all ids (default context)",
            "",
            "IQM: the mean of the middle half of all normalised scores. P(better): how probably one run of it beats "
            f"one of {suite.baseline}. Intervals are bootstrapped, from 20 seeds on. `> x`: the part of its runs whose "
            "normalised score is above x.",
            "",
            markdown(OVERALL, [overall_cells(line) for line in every]),
            "",
        ]
    for claim in suite.claims:
        lines += [f"## Claim: {claim.text}", "", markdown(claim_heads(claim), claim_cells(claim, tables)), ""]
    if results.failures or results.damaged:
        lines += ["## Failures", "", *(f"- {name}: {why}" for name, why in results.failures.items())]
        lines += [*(f"- {line}" for line in results.damaged), ""]
    return "\n".join(lines)


def write_tables(results: Results) -> None:
    """Write `table.md`, `table.tex` and `table.json` beside the records."""
    suite, tables = results.suite, tables_of(results)
    every = overall(tables)
    write_text(results.folder / "table.md", _page(results, tables, every))
    parts = [latex(heads(t), [cells(row) for row in t.rows], t.title) for t in tables]
    if every:
        parts.append(latex(OVERALL, [overall_cells(line) for line in every], "Over all ids (default context)"))
    parts += [latex(claim_heads(claim), claim_cells(claim, tables), f"Claim: {claim.text}") for claim in suite.claims]
    write_text(results.folder / "table.tex", "\n\n".join(parts) + "\n")
    told = {
        "tables": [{**_place(table), "rows": [_as_json(row) for row in table.rows]} for table in tables],
        "overall": {"levels": LEVELS, "rows": [asdict(line) for line in every]},
        "claims": [
            {**asdict(claim), "verdicts": [asdict(verdict) for verdict in verdicts(claim, tables)]}
            for claim in suite.claims
        ],
    }
    write_json(results.folder / "table.json", _finite(told))


def _place(table: Table) -> dict[str, Any]:
    return {"env": table.env, "context": table.context, "budget": table.budget, "baseline": table.baseline}


def _as_json(row: Row) -> dict[str, Any]:
    told = {"controller": row.controller, "seeds": len(row.records), "wanted": row.wanted}
    if not row.records:
        return told
    against = {name: row.against(key) for name, key in (("score", row.metric), ("cross_entropy", "cross_entropy"))}
    return told | {
        "metric": row.metric,
        "score": asdict(interval(row.values(row.metric))),
        "cross_entropy": asdict(interval(row.values("cross_entropy"))),
        **{f"{name}_against_baseline": found and asdict(found) for name, found in against.items()},
        "flops": float(np.mean(row.values("spent"))),
        "seconds": float(np.mean(row.values("seconds"))),
    }


def _finite(told: Any) -> Any:
    """The same with null for what is not a number, which JSON does not know."""
    if isinstance(told, dict):
        return {key: _finite(value) for key, value in told.items()}
    if isinstance(told, list | tuple):
        return [_finite(value) for value in told]
    return None if isinstance(told, float) and math.isnan(told) else told
