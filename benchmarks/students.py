"""Why this student and this horizon: what other sizes, horizons, batches, rates and precisions bring on `select`, and
their cost.

    python benchmarks/students.py [--env KnowledgeSelect-SST2] [--data auto] [--seeds 4] [--out FILE]

Every variant of the id's recipe runs a whole episode of the uniform control in the default context, all seeds side by
side; milliseconds are those of one update of one of these students.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kd_gym.backend.state import Context
from kd_gym.backend.teacher import fast_bfloat16
from kd_gym.backend.terms import Control
from kd_gym.envs.lab import open_lab
from kd_gym.envs.recipes import EnvRecipe
from kd_gym.experiments.setup import EnvSpec

HALF = {"precision": "bfloat16"}
SEEDS = 3_000_000_000  # as in game.py: apart from those of training, selection and evaluation


def variants(recipe: EnvRecipe, half: bool) -> dict[str, EnvRecipe]:
    """The id's own recipe and others beside it, by name; those in bfloat16 where there is `half` precision."""

    def other(process: dict[str, Any] | None = None, **student: Any) -> EnvRecipe:
        return replace(recipe, process=replace(recipe.process, **(process or {})), **student)

    wide = {"layers": 3, "hidden": 384, "heads": 12}
    in_half = {"bfloat16": other(HALF), "3 layers, width 384, bfloat16": other(HALF, **wide)}
    return {
        "the id's own": recipe,
        "1 layer": other(layers=1),
        "3 layers": other(layers=3),
        "width 64": other(hidden=64, heads=2),
        "width 256": other(hidden=256, heads=8),
        "1 layer, width 384": other(layers=1, hidden=384, heads=12),
        "batch 32": other({"batch": 32}),
        "batch 128": other({"batch": 128}),
        "75 updates": other({"horizon": 75}, updates=5),
        "300 updates": other({"horizon": 300}),
        "rate 5e-4": other({"learning_rate": 5e-4}),
        "rate 2e-3": other({"learning_rate": 2e-3}),
        "3 layers, width 384": other(**wide),
        **(in_half if half else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="KnowledgeSelect-SST2")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/students.md"))
    args = parser.parse_args()

    spec = EnvSpec(args.env, args.data)
    own = spec.family.recipe
    lines = [
        f"`python benchmarks/students.py --env {args.env} --seeds {args.seeds}`, {torch.get_num_threads()} thread(s), "
        f"{spec.lab().data.source}. Own: {own.layers} x {own.hidden}, batch {own.process.batch}, "
        f"{own.process.horizon} updates, rate {own.process.learning_rate:g}.\n",
        "| variant | `select` accuracy | cross-entropy | ms per update | seconds per episode |",
        "|---|---|---|---|---|",
    ]
    for name, recipe in variants(own, fast_bfloat16(spec.lab().device)).items():
        lab = open_lab(recipe, args.data)
        process = lab.process(args.seeds, [Context().teachers])
        process.reset([SEEDS + i for i in range(args.seeds)], [Context()] * args.seeds)
        k = len(recipe.process.knowledge)
        process.advance(Control(torch.full((args.seeds, k), 1 / k)), recipe.process.horizon)
        seconds = process.cost.seconds["student"] / args.seeds
        told = process.evaluate(lab.data.split("select").to(lab.device).batches())
        cells = [f"{value.mean():.3f} ± {value.std():.3f}" for value in (told.accuracy, told.cross_entropy)]
        cells += [f"{seconds / recipe.process.horizon * 1e3:.0f}", f"{seconds:.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
