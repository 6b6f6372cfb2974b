"""The parts of a report that runs and benchmarks share."""

from collections.abc import Sequence

import numpy as np

from kd_gym.analysis import figures
from kd_gym.analysis.figures import Point
from kd_gym.analysis.page import Picture, Section, Table
from kd_gym.experiments.records import Record
from kd_gym.experiments.stats import interval
from kd_gym.experiments.summary import value_of

Groups = dict[str, dict[int, Record]]  # by controller and seed


def values(records: dict[int, Record], name: str) -> list[float]:
    """A number of each seed's episode: a metric, or a field by its name."""
    return [value_of(record, name) for record in records.values()]


def spent(records: dict[int, Record]) -> float:
    """GFLOPs of an episode, the mean over seeds."""
    return float(np.mean(values(records, "spent"))) / 1e9


def policy(records: Sequence[Record]) -> list[Section]:
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


def cost(groups: Groups, metric: str) -> list[Section]:
    """Every controller's score against the cost of its episodes."""
    points = []
    for name, found in groups.items():
        score = interval(values(found, metric))
        points.append(Point(name, spent(found), score.mean, score.half, next(iter(found.values())).fixed))
    text = (
        "Score against what an episode costs: student, evaluations, teachers in the loop and controller. The line is "
        "the Pareto front: nothing cheaper scores higher."
    )
    return [
        Section("Score and cost", text, [Picture("cost", text, lambda: figures.score_against_cost(points, metric))])
    ]


def effects(records: Sequence[Record]) -> list[Section]:
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


def missing(lines: Sequence[str]) -> list[Section]:
    """What the page does not show, and why."""
    table = Table(("what", "why"), [line.partition(": ")[::2] for line in lines])
    return [Section("Not here", "What failed, was not run, or cannot be read.", [table])] if lines else []


def provenance(records: Sequence[Record]) -> Section:
    """Which data, teachers, versions and machine the numbers are of."""
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
