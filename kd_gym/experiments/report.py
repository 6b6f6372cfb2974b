"""`kd-gym report`: what a run or a benchmark shows, as one HTML page and PNG files."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_gym.analysis import figures
from kd_gym.analysis.figures import Curve, Difference, Point
from kd_gym.analysis.page import Picture, Section, Table, write_page
from kd_gym.errors import KDGymError
from kd_gym.experiments import summary
from kd_gym.experiments.benchmark import Results, read_results
from kd_gym.experiments.records import Record
from kd_gym.experiments.runs import is_run, read_config
from kd_gym.experiments.stats import interval, performance_profile
from kd_gym.experiments.suites import load_suite
from kd_gym.experiments.summary import value_of
from kd_gym.experiments.transfer import Cell
from kd_gym.experiments.validate import records_in

Groups = dict[str, dict[int, Record]]  # by controller and seed


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
        summary.write_tables(results)  # of the same records as the page
        return _of_benchmark(results, out)
    raise KDGymError(f"{place} is neither a run (config.yaml) nor a benchmark (suite.yaml)")


# ---------------------------------------------------------------------- a run


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
    sections = [
        Section(
            "Scores",
            "Differences are over the seeds that both played; ± is half of a 95 % interval (Student's t), the seed "
            f"being the unit. Score and cross-entropy are of the report split. Context: {context}.",
            [_scores(groups, metric), *_paired(groups, own, metric)],
        ),
        *_learning(folder, groups, own, metric),
        *_policy(mine),
        *_cost(groups, metric),
        *_effects(records),
        *_transfer(folder, own),
        _provenance(records),
        *_missing(damaged),
    ]
    return write_page(out, f"{own} on {config.env}", verdict, sections)


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


def _values(records: dict[int, Record], name: str) -> list[float]:
    return [value_of(record, name) for record in records.values()]


def _spent(records: dict[int, Record]) -> float:
    return float(np.mean(_values(records, "spent"))) / 1e9


def _scores(groups: Groups, metric: str) -> Table:
    heads = ["controller", "seeds", f"report {metric}", "cross-entropy", "reward", "GFLOP"]
    rows = [
        [
            name,
            str(len(found)),
            *(interval(_values(found, key)).text() for key in (metric, "cross_entropy", "reward")),
            f"{_spent(found):.3g}",
        ]
        for name, found in groups.items()
    ]
    return Table(heads, rows)


def _paired(groups: Groups, own: str, metric: str) -> list[Picture]:
    rows = {}
    for name in (metric, "cross_entropy"):
        found = [(other, summary.difference(groups[own], groups[other], name)) for other in groups if other != own]
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
        name: float(np.mean(_values(found, "reward")))
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


def _policy(records: Sequence[Record]) -> list[Section]:
    """The policy map and the parts of the reward, of the episodes of one controller."""
    if not records:
        return []
    names = [name for name in records[0].episode.trace if name.startswith("weight/")]
    paths: dict[str, list[figures.Array]] = {}
    for record in records:
        path = np.array([record.episode.trace[name] for name in names]).T
        paths.setdefault(record.episode.context, []).append(path)
    short = [name.removeprefix("weight/") for name in names]
    length = max(len(record.episode.actions) for record in records)
    records = [record for record in records if len(record.episode.actions) == length]  # whose student did not fail
    terms = {}
    for name in [n for n in records[0].episode.trace if n.startswith("term/") and n != "term/accuracy_gain"]:
        mean = np.mean([record.episode.trace[name][:length] for record in records], 0)
        if np.any(mean):
            terms[name.removeprefix("term/")] = mean.tolist()
    sections = [
        Section(
            "Policy",
            "The weight of each part of the control over the progress of an episode, the mean of the evaluated "
            "episodes with a band of one deviation, by context. The policy is not told the context.",
            [Picture("policy", f"Weights of {', '.join(short)}", lambda: figures.weights_by_context(short, paths))],
        )
    ]
    if terms:
        sections.append(
            Section(
                "Reward",
                "What each decision brought, by the terms of the reward, the mean of the same episodes.",
                [Picture("reward", "Terms of the reward by decision", lambda: figures.reward_terms(terms))],
            )
        )
    return sections


def _cost(groups: Groups, metric: str) -> list[Section]:
    points = []
    for name, found in groups.items():
        score = interval(_values(found, metric))
        points.append(Point(name, _spent(found), score.mean, score.half, next(iter(found.values())).fixed))
    text = (
        "Score against what an episode costs: student, evaluations, teachers in the loop and controller. The line is "
        "the Pareto front: nothing cheaper scores higher."
    )
    return [
        Section("Score and cost", text, [Picture("cost", text, lambda: figures.score_against_cost(points, metric))])
    ]


def _effects(records: Sequence[Record]) -> list[Section]:
    """What decisions brought by the weight that they gave, beside other controllers' at the same point and seed."""
    drops: dict[tuple[object, ...], list[tuple[float, dict[str, float]]]] = {}
    for record in records:
        trace, place = record.episode.trace, (record.env, str(record.kwargs.get("context")), record.episode.seed)
        losses = trace["cross_entropy"]
        for i in range(1, len(losses)):
            given = {name: trace[name][i] for name in trace if name.startswith("weight/")}
            key = (*place, tuple(given), len(losses), i)
            drops.setdefault(key, []).append((losses[i - 1] - losses[i], given))
    effects: dict[str, tuple[list[float], list[float]]] = {}
    for found in drops.values():
        if len(found) < 3:
            continue
        mean = float(np.mean([drop for drop, _ in found]))
        for drop, given in found:
            for name, weight in given.items():
                x, y = effects.setdefault(name.removeprefix("weight/"), ([], []))
                x.append(weight)
                y.append(drop - mean)
    effects = {name: found for name, found in effects.items() if np.ptp(found[0]) > 0}
    if not effects:
        return []
    text = (
        "How much more the cross-entropy on the reward split fell in a decision than under the other controllers with "
        "the same seed at the same point, by the weight that the decision gave: points are decisions, the marks means "
        "of fifths. Controllers that give a weight early have another student later, so this shows "
        "what goes together, not what causes what."
    )
    return [
        Section(
            "What actions did to the student",
            text,
            [Picture("effects", text, lambda: figures.effect_of_weights(effects))],
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


def _missing(lines: Sequence[str]) -> list[Section]:
    """What the page does not show, and why."""
    table = Table(("what", "why"), [line.partition(": ")[::2] for line in lines])
    return [Section("Not here", "What failed, was not run, or cannot be read.", [table])] if lines else []


def _provenance(records: Sequence[Record]) -> Section:
    rows: dict[tuple[str, ...], set[str]] = {}
    for r in records:
        m = r.machine
        teachers = ", ".join(f"{name} {weights}" for name, weights in r.teachers.items())
        key = (
            r.env,
            r.source,
            r.data_fingerprint,
            teachers,
            m.kd_gym,
            m.code,
            m.torch,
            m.cpu,
            m.device,
            str(m.threads),
        )
        rows.setdefault(key, set()).add(r.controller)
    heads = ("env", "data", "fingerprint", "teachers", "kd-gym", "code", "torch", "cpu", "device", "threads")
    return Section(
        "Where this comes from",
        f"{len(records)} records. kd-gym validate plays them again.",
        [Table(("controllers", *heads), [(", ".join(sorted(names)), *key) for key, names in rows.items()])],
    )


# ---------------------------------------------------------------------- a benchmark


def _of_benchmark(results: Results, out: Path) -> Path:
    suite, tables = results.suite, summary.tables_of(results)
    if not results.records:
        raise KDGymError(f"{results.folder} holds no records yet")
    sections: list[Section] = []
    missing = [*(f"{name}: {why}" for name, why in results.failures.items()), *results.damaged]
    for table in tables:
        rows = [row for row in table.rows if row.records]
        if not rows:
            missing.append(f"{table.title}: not run")
            continue
        groups: Groups = {row.controller: row.records for row in rows}
        metric, name = rows[0].metric, f"{len(sections)}-{table.env.removesuffix('-v0')}"
        parts: list[Table | Picture] = [Table(summary.heads(table), [summary.cells(row) for row in table.rows])]
        against = [(row.controller, row.against(metric)) for row in rows]
        found = [Difference(controller, d.mean, d.half) for controller, d in against if d is not None]
        (cost,) = _cost(groups, metric)
        parts += [Picture(f"{name}-cost", p.text, p.draw) for p in cost.parts if isinstance(p, Picture)]
        if found:
            label = (
                f"report {metric} less that of {table.baseline}, paired by seed (blue: better; filled: beyond chance)"
            )
            parts.append(
                Picture(
                    f"{name}-differences",
                    label,
                    lambda found=found, label=label: figures.differences(found, label),  # type: ignore[misc]
                )
            )
        sections.append(Section(table.title, "", parts))
    every = summary.overall(tables)
    if every:
        plain = [t for t in tables if t.context == "default" and t.budget == "own"]
        levels = np.linspace(-1, 1, 41).tolist()
        profiles = {}
        for line in every:
            scaled = [row.normalised() for t in plain if (row := t.row(line[0]))]
            profiles[line[0]] = performance_profile([s for s in scaled if s], levels)
        text = "The part of a controller's runs whose normalised score is above a level, over all ids."
        picture = Picture("profiles", text, lambda: figures.profiles(levels, profiles))
        sections.insert(0, Section("Over all ids", text, [Table(summary.OVERALL, every), picture]))
    learnt = [r for t, r in results.records.items() if r.trained and t.budget == "own"]
    for name, env in dict.fromkeys((r.controller, r.env) for r in learnt):
        for part in _policy([r for r in learnt if (r.controller, r.env) == (name, env)]):
            parts = [Picture(f"{p.name}-{name}-{env}", p.text, p.draw) for p in part.parts if isinstance(p, Picture)]
            sections.append(Section(f"{part.title} of {name} on {env}", part.text, parts))
    sections += _effects([r for r in results.records.values() if r.env.startswith("KnowledgeSelect")])
    for claim in suite.claims:
        answers = Table(summary.claim_heads(claim), list(summary.claim_rows(claim, tables)))
        sections.append(Section(f"Claim: {claim.text}", "", [answers]))
    sections += [_provenance(list(results.records.values())), *_missing(missing)]
    return write_page(out, f"Benchmark {results.folder.name}", suite.about, sections)
