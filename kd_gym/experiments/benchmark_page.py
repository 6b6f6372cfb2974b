"""What `kd-gym report` shows of a benchmark."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kd_gym.analysis import figures
from kd_gym.analysis.figures import Difference
from kd_gym.analysis.page import Picture, Section, Table, write_page
from kd_gym.errors import KDGymError
from kd_gym.experiments import publish, sections, summary
from kd_gym.experiments.benchmark import Results
from kd_gym.experiments.stats import performance_profile


def benchmark_page(results: Results, out: Path) -> Path:
    """Write the page of all tables and its figures; returns it.

    Raises:
        KDGymError: there is no record.
    """
    if not results.records:
        raise KDGymError(f"{results.folder} holds no records yet")
    suite, tables, records = results.suite, summary.tables_of(results), list(results.records.values())
    told = [_table(table, f"{i}-{table.env.removesuffix('-v0')}") for i, table in enumerate(tables) if _run(table)]
    claims = [
        Section(f"Claim: {claim.text}", "", [Table(publish.claim_heads(claim), publish.claim_cells(claim, tables))])
        for claim in suite.claims
    ]
    missing = [*(f"{name}: {why}" for name, why in results.failures.items()), *results.damaged]
    missing += [f"{table.title}: not run" for table in tables if not _run(table)]
    parts = [
        *_overall(tables),
        *told,
        *_policies(results),
        *sections.effects([record for record in records if record.env.startswith("KnowledgeSelect")]),
        *claims,
        sections.provenance(records),
        *sections.missing(missing),
    ]
    return write_page(out, f"Benchmark {results.folder.name}", suite.about, parts)


def _run(table: summary.Table) -> list[summary.Row]:
    return [row for row in table.rows if row.records]


def _table(table: summary.Table, name: str) -> Section:
    """A table, score against cost, and the differences from the baseline; `name` begins those of the pictures."""
    rows = _run(table)
    metric = rows[0].metric
    (cost,) = sections.cost({row.controller: row.records for row in rows}, metric)
    parts: list[Table | Picture] = [Table(publish.heads(table), [publish.cells(row) for row in table.rows])]
    parts += _renamed(cost, name + "-{}")
    against = [(row.controller, row.against(metric)) for row in rows]
    found = [Difference(controller, d.mean, d.half) for controller, d in against if d is not None]
    if found:
        text = f"report {metric} less that of {table.baseline}, paired by seed (blue: better; filled: beyond chance)"
        parts.append(Picture(f"{name}-differences", text, lambda: figures.differences(found, text)))
    return Section(table.title, "", parts)


def _overall(tables: Sequence[summary.Table]) -> Iterator[Section]:
    """All ids together, where any has its baseline and a teacher that is better."""
    every = summary.overall(tables)
    if every:
        levels = np.linspace(-1, 1, 41).tolist()
        profiles = {line.controller: performance_profile(line.scores, levels) for line in every}
        text = "The part of a controller's runs whose normalised score is above a level, over all ids."
        picture = Picture("profiles", text, lambda: figures.profiles(levels, profiles))
        cells = Table(publish.OVERALL, [publish.overall_cells(line) for line in every])
        yield Section("Over all ids", text, [cells, picture])


def _policies(results: Results) -> Iterator[Section]:
    """The policy and the reward of whatever was trained, on each id."""
    learnt = [r for t, r in results.records.items() if r.trained and t.budget == "own"]
    for name, env in dict.fromkeys((r.controller, r.env) for r in learnt):
        for part in sections.policy([r for r in learnt if (r.controller, r.env) == (name, env)]):
            yield Section(f"{part.title} of {name} on {env}", part.text, _renamed(part, f"{{}}-{name}-{env}"))


def _renamed(section: Section, form: str) -> list[Picture]:
    """A section's pictures under names that are theirs alone on the page."""
    return [Picture(form.format(p.name), p.text, p.draw) for p in section.parts if isinstance(p, Picture)]
