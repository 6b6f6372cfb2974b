"""`kd-gym report`: what a run or a benchmark shows, as one HTML page and PNG files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_gym.analysis import figures
from kd_gym.analysis.figures import Curve, Difference
from kd_gym.analysis.page import Picture, Section, Table, write_page
from kd_gym.errors import KDGymError
from kd_gym.experiments import sections
from kd_gym.experiments.benchmark import read_results
from kd_gym.experiments.benchmark_page import benchmark_page
from kd_gym.experiments.publish import write_tables
from kd_gym.experiments.records import Record
from kd_gym.experiments.runs import is_run, read_config
from kd_gym.experiments.sections import Groups
from kd_gym.experiments.stats import interval
from kd_gym.experiments.suites import load_suite
from kd_gym.experiments.summary import difference
from kd_gym.experiments.transfer import Cell
from kd_gym.experiments.validate import records_in


def report(place: Path, out: Path | None = None) -> Path:
    """Write the report of a run or of a folder of benchmark results (and its tables anew); returns the page.

    Args:
        place: a run directory, or a folder of results.
        out: where the page and the figures go; by default `report` inside the place.

    Raises:
        KDGymError: the place is neither, or holds no records.
    """
    out = out or place / "report"
    if is_run(str(place)):
        return _of_run(place, out)
    if (place / "suite.yaml").is_file():
        results = read_results(place, load_suite(str(place / "suite.yaml")))
        write_tables(results)  # of the same records as the page
        return benchmark_page(results, out)
    raise KDGymError(f"{place} is neither a run (config.yaml) nor a benchmark (suite.yaml)")


def _of_run(folder: Path, out: Path) -> Path:
    config = read_config(folder)
    records, damaged = [], []
    for file in records_in([folder]):
        try:
            records.append(Record.read(file))
        except KDGymError as error:
            damaged.append(str(error))
    if not records:
        raise KDGymError(f"{folder} holds no record that can be read")
    own, wanted = config.agent, {"context": "default", **config.env_config}
    context = wanted["context"]
    mine = [r for r in records if r.trained and r.env == config.spec.id and _shape(r.kwargs) == _shape(wanted)]
    first = next((r for r in mine if r.kwargs.get("context", "default") == context), (mine or records)[0])
    mine = [r for r in mine if r.data_fingerprint == first.data_fingerprint]
    metric = first.metrics[0]
    groups = _grouped(sorted(_same(records, first), key=lambda record: not record.trained))
    told = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
    verdict = next((row["verdict"] for row in told.get("rows", []) if row["name"] == own), "")
    parts = [
        Section(
            "Scores",
            "Differences are over the seeds that both played; ± is half of a 95 % interval (Student's t), the seed "
            f"being the unit. Score and cross-entropy are of the report split. Context: {context}.",
            [_scores(groups, metric), *_paired(groups, own, metric)],
        ),
        *_learning(folder, groups, own, metric),
        *sections.policy(mine),
        *sections.cost(groups, metric),
        *sections.effects(records),
        *_transfer(folder, own),
        sections.provenance(records),
        *sections.missing(damaged),
    ]
    return write_page(out, f"{own} on {config.env}", verdict, parts)


def _shape(kwargs: dict[str, Any]) -> list[object]:
    """What tells an id's own episodes from others of it."""
    return [kwargs.get(name) for name in ("horizon", "student", "learning_rate")]


def _same(records: Iterable[Record], as_this: Record) -> list[Record]:
    """The records of one id, context, budget and data."""

    def place(record: Record) -> list[object]:
        kwargs = {"context": "default", **record.kwargs}
        return [record.env, record.data_fingerprint, kwargs["context"], *_shape(kwargs)]

    return [record for record in records if place(record) == place(as_this)]


def _grouped(records: Iterable[Record]) -> Groups:
    groups: Groups = {}
    for record in records:
        groups.setdefault(record.controller, {})[record.episode.seed] = record
    return groups


def _scores(groups: Groups, metric: str) -> Table:
    heads = ["controller", "seeds", f"report {metric}", "cross-entropy", "reward", "GFLOP"]
    rows = [
        [
            name,
            str(len(found)),
            *(interval(sections.values(found, key)).text() for key in (metric, "cross_entropy", "reward")),
            f"{sections.spent(found):.3g}",
        ]
        for name, found in groups.items()
    ]
    return Table(heads, rows)


def _paired(groups: Groups, own: str, metric: str) -> list[Picture]:
    rows = {}
    for name in (metric, "cross_entropy"):
        found = [(other, difference(groups[own], groups[other], name)) for other in groups if other != own]
        rows[name] = [Difference(f"{own} − {other}", d.mean, d.half) for other, d in found if d is not None]
    return [
        Picture(
            f"differences-{name}",
            f"Paired differences in {name}: " + "; ".join(f"{r.name} {r.mean:.3f} ± {r.half:.3f}" for r in found),
            lambda found=found, name=name: figures.differences(  # type: ignore[misc]
                found,
                f"difference in report {name.replace('_', '-')}, paired by seed (blue: better; filled: beyond chance)",
                lower_is_better=name != metric,
            ),
        )
        for name, found in rows.items()
        if found
    ]


def _learning(folder: Path, groups: Groups, own: str, metric: str) -> list[Section]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    if "reward/return" not in tags:
        return []

    def curve(tag: str) -> Curve:
        found = events.Scalars(tag) if tag in tags else []
        return Curve([e.step for e in found], [e.value for e in found])

    returns, select = curve("reward/return"), curve(f"eval/select_{metric}")
    fixed = {
        name: float(np.mean(sections.values(found, "reward")))
        for name, found in groups.items()
        if name != own and next(iter(found.values())).fixed
    }
    text = (
        "Above, the return of each training episode, and as dashed lines the mean return of the fixed controls on the "
        f"evaluation seeds. Below, the {metric} on the select split, by which the policy was chosen."
    )
    return [
        Section(
            "Learning curve",
            text,
            [Picture("learning", text, lambda: figures.learning_curve(returns, select, metric, fixed))],
        )
    ]


def _transfer(folder: Path, own: str) -> list[Section]:
    """The matrix that `kd-gym evaluate --transfer` left, if it did."""
    if not (folder / "transfer.json").exists():
        return []
    told = json.loads((folder / "transfer.json").read_text())
    cells = [Cell(**cell) if cell else None for cell in told["cells"]]
    values = np.array([[cell.gain if cell else np.nan for cell in cells]])
    texts = [[cell.text.replace(" ± ", "\n± ") if cell else "does not fit" for cell in cells]]
    text = (
        f"The policy where it was not trained: report score less that of the uniform control, paired over "
        f"{told['seeds']} seeds (*: beyond chance)."
    )
    names = [target.replace(":", "\n") for target in told["targets"]]
    return [Section("Transfer", text, [Picture("transfer", text, lambda: figures.matrix([own], names, values, texts))])]
