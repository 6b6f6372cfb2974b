"""Is an id worth playing? Spread and room of its fixed controls, in units of the seed spread.

    python benchmarks/game.py KnowledgeSelect-SST2 [--data auto] [--seeds 8] [--out benchmarks/results/game]

Every fixed control (of `KnowledgeSelect` the equal mixes of one, two and all knowledge types that contain `hard` or
`response`, of `TeacherWeight` those of teachers) runs a whole episode in every training context, `seeds` students at a
time; cross-entropy on `select` is kept. Finished cells are not run again.

- seed spread: root of the mean, over contexts and controls, of the variance across seeds.
- spread of a context: (worst - best mean over seeds) / seed spread.
- room: mean over contexts of (best single control over all contexts - best control of the context) / seed spread.

With `--facts` the numbers are written to where `kd-gym describe` reads them.
"""

import argparse
import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd_gym.backend.state import Context
from kd_gym.backend.terms import Control
from kd_gym.envs.contexts import TRAIN
from kd_gym.envs.family import equal_knowledge
from kd_gym.envs.lab import Lab
from kd_gym.experiments.facts import PUBLISHED, note
from kd_gym.experiments.prepare import score_teachers
from kd_gym.experiments.setup import EnvSpec
from kd_gym.files import write_json

SEEDS = 3_000_000_000  # apart from those of training, selection and evaluation


def mixes(spec: EnvSpec) -> dict[str, list[float]]:
    """Equal mixes of one, two and all of a family's weights, by name; of knowledge types those that contain `hard` or
    `response`.
    """
    labels = spec.family.labels
    found = {}
    for size in (1, 2, len(labels)):
        for chosen in itertools.combinations(labels, size):
            if spec.family_name != "KnowledgeSelect" or {"hard", "response"} & set(chosen):
                found["+".join(chosen)] = [(name in chosen) / size for name in labels]
    return found


def control_of(spec: EnvSpec, weights: list[float], students: int) -> Control:
    """What these weights set, for so many students."""
    if spec.family_name == "KnowledgeSelect":
        return Control(torch.tensor([weights] * students))
    return Control(equal_knowledge(students, spec.family.recipe), torch.tensor([weights] * students))


def twin_of(context: Context, cells: dict[str, dict[str, Any]], name: str, control: Control) -> str | None:
    """A finished context in which this control does the same: who does not read labels does not see their noise."""

    def without_noise(c: Context) -> Context:
        return replace(c, name="", label_noise=0.0)

    done = (c for c in TRAIN if name in cells.get(c.name, {}) and without_noise(c) == without_noise(context))
    return None if control.knowledge[0, 0] else next((c.name for c in done), None)  # the first type is `hard`


def run_cell(lab: Lab, control: Control, context: Context) -> dict[str, list[float]]:
    """Cross-entropy and accuracy on `select` of whole episodes under one control, one value for each seed."""
    seeds = len(control.knowledge)
    process = lab.process(seeds, [context.teachers])
    process.reset([SEEDS + i for i in range(seeds)], [context] * seeds)
    process.advance(control, lab.recipe.process.horizon)
    evaluation = process.evaluate(lab.data.split("select").to(lab.device).batches())
    return {"cross_entropy": evaluation.cross_entropy.tolist(), "accuracy": evaluation.accuracy.tolist()}


def summarise(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Spread of each context and room over all, from cells[context][control]."""
    table = {c: {k: np.array(v["cross_entropy"]) for k, v in row.items()} for c, row in cells.items()}
    seed_spread = float(np.sqrt(np.mean([v.var(ddof=1) for row in table.values() for v in row.values()])))
    means = {c: {k: float(v.mean()) for k, v in row.items()} for c, row in table.items()}
    names = list(next(iter(means.values())))
    best_single = min(names, key=lambda k: np.mean([row[k] for row in means.values()]))
    best = {c: min(row, key=row.__getitem__) for c, row in means.items()}
    return {
        "seed_spread": seed_spread,
        "spread": {c: (max(row.values()) - min(row.values())) / seed_spread for c, row in means.items()},
        "room": float(np.mean([row[best_single] - row[best[c]] for c, row in means.items()])) / seed_spread,
        "best_single": best_single,
        "best": best,
    }


def markdown(env: str, source: str, cells: dict[str, dict[str, Any]], summary: dict[str, Any]) -> str:
    """The table of cells and the summary."""
    names = list(next(iter(cells.values())))
    lines = [f"| {env}, {source} | " + " | ".join(cells) + " |", "|---" * (len(cells) + 1) + "|"]
    for name in names:
        row = [np.array(cells[c][name]["cross_entropy"]) for c in cells]
        marked = [
            f"**{v.mean():.3f}**" if summary["best"][c] == name else f"{v.mean():.3f}"
            for c, v in zip(cells, row, strict=True)
        ]
        lines.append(
            f"| {name} | " + " | ".join(f"{m} ± {v.std(ddof=1):.3f}" for m, v in zip(marked, row, strict=True)) + " |"
        )
    lines.append("| spread | " + " | ".join(f"{summary['spread'][c]:.1f}" for c in cells) + " |")
    lines.append("")
    lines.append(
        f"Seed spread {summary['seed_spread']:.4f}; best single fixed control {summary['best_single']}; "
        f"room {summary['room']:.1f} seed spreads."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/game"))
    parser.add_argument("--facts", action="store_true")
    args = parser.parse_args()

    spec = EnvSpec(args.env, args.data)
    if spec.family_name not in ("KnowledgeSelect", "TeacherWeight"):
        parser.error("fixed controls are defined for KnowledgeSelect and TeacherWeight")
    lab = spec.lab()
    source = lab.data.source.split(":")[0]
    file = args.out / f"{spec.id}-{source}.json"
    about: dict[str, Any] = {
        "env": spec.id,
        "recipe": lab.recipe.hash,
        "data": lab.data.fingerprint,
        "source": lab.data.source,
    }
    about |= {"seeds": args.seeds, "teacher": lab.teacher.hash, "threads": torch.get_num_threads()}
    kept = json.loads(file.read_text()) if file.exists() else {}
    if not all(kept.get(k) == v for k, v in about.items()):
        kept = {"cells": {}, "contexts": {}}
    contexts = {context.name: asdict(context) for context in TRAIN}
    cells: dict[str, dict[str, Any]] = {
        name: kept["cells"].get(name, {}) if kept["contexts"].get(name) == what else {}
        for name, what in contexts.items()
    }
    about["contexts"] = contexts
    for context in TRAIN:
        for name, weights in mixes(spec).items():
            if name not in cells[context.name]:
                control = control_of(spec, weights, args.seeds)
                twin = twin_of(context, cells, name, control)
                cells[context.name][name] = cells[twin][name] if twin else run_cell(lab, control, context)
                values = cells[context.name][name]["cross_entropy"]
                print(f"{context.name:16s} {name:36s} {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}", flush=True)
                write_json(file, {**about, "cells": cells})
    summary = summarise(cells)
    write_json(file, {**about, "cells": cells, "summary": summary})
    text = markdown(spec.id, lab.data.source, cells, summary)
    file.with_suffix(".md").write_text(f"`python benchmarks/game.py {args.env}`\n\n{text}\n")
    print(text)
    if args.facts:
        published = {"seeds": args.seeds, "teacher": lab.teacher.hash, "threads": torch.get_num_threads()}
        note(PUBLISHED, spec.id, lab, teachers=score_teachers(spec, lab), **published, **summary)


if __name__ == "__main__":
    main()
