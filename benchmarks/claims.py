"""Do the published claims hold here? Paired differences out of the tables, one line for each claim, task and context.

    python benchmarks/claims.py [--tables benchmarks/results/tables] [--out benchmarks/results/claims.md]

A claim is *supported* where the method's score is higher and the 95 % interval of the paired difference excludes zero,
*not supported* where it is lower and the interval excludes zero, and *undecided* otherwise. The difference of
cross-entropy on `report` stands beside it, lower being better. What has no row in a table is *not run*. Nothing is
measured here: `benchmarks/tables.py` does that.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_gym.experiments.stats import paired
from kd_gym.files import write_text

TASKS = ("SST2", "MRPC", "RTE")
BASELINES = ("pkd-skip", "skd", "dist", "takd", "rco", "dml", "prokt", "pesf-kd", "meta-distil")


@dataclass(frozen=True)
class Claim:
    """That a method scores higher than others, as a paper says, on a page of tables."""

    text: str
    page: str
    method: str
    others: tuple[str, ...]


CLAIMS = (
    Claim("LGTM is better than KD (Ren et al., 2023)", "Methods", "lgtm", ("kd",)),
    Claim("LGTM is better than each of the other baselines (Ren et al., 2023)", "Methods", "lgtm", BASELINES),
    Claim("IKD is better than KD (Liu et al., 2021)", "Methods", "ikd", ("kd",)),
    Claim(
        "Learned knowledge selection is better than random and fixed (Wang et al., 2022)",
        "KnowledgeSelect",
        "aks",
        ("random", "uniform", "static:1,0,1,0"),
    ),
    Claim("Teacher selection is better than the average (Yuan et al., 2021)", "TeacherWeight", "rlkd", ("uniform",)),
)


def lines_of(claim: Claim, folder: Path) -> Iterator[str]:
    """A row for each task, context and other method."""
    for task in TASKS:
        file = folder / f"{task}-{claim.page}.json"
        tables: dict[str, Any] = json.loads(file.read_text())["tables"] if file.exists() else {}
        found = False
        for context, table in tables.items():
            metric = table["metrics"][0]
            episodes = {row["name"]: row["episodes"] for row in table["rows"]}
            for other in claim.others:
                if claim.method in episodes and other in episodes:
                    found = True
                    mine, its = episodes[claim.method], episodes[other]
                    apart = paired([e["scores"][metric] for e in mine], [e["scores"][metric] for e in its])
                    loss = paired([e["cross_entropy"] for e in mine], [e["cross_entropy"] for e in its])
                    sure = abs(apart.mean) > apart.half
                    word = ("supported" if apart.mean > 0 else "not supported") if sure else "undecided"
                    told = f"{apart.text()} {metric}, {len(its)} seeds"
                    yield f"| {task} | {context} | {other} | {told} | {loss.text()} | {word} |"
        if not found:
            yield f"| {task} | | | | | not run |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=Path("benchmarks/results/tables"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/claims.md"))
    args = parser.parse_args()
    lines = ["# Published claims, on this suite", "", *(__doc__ or "").split("\n")[4:], ""]
    for claim in CLAIMS:
        lines += [
            f"## {claim.text}",
            "",
            f"| task | context | against | `{claim.method}` less that | its cross-entropy | here |",
        ]
        lines += ["|---|---|---|---|---|---|", *lines_of(claim, args.tables), ""]
    lines += [
        "These are short distillations of a MiniLM-L6 into two layers of 128 (150 updates), not the papers' BERT-base "
        "into six layers over whole epochs. What does not show here may show there.",
        "",
    ]
    write_text(args.out, "\n".join(lines))


if __name__ == "__main__":
    main()
