"""How the cost of an update grows: with updates made, rows, sequence length, students, teachers, knowledge types.

    python benchmarks/speed/growth.py [--repeats 5] [--updates 10] [--out FILE]

Each series alternates its sizes in one run. `exponent` is the slope of log(time of an update of all students) over
log(size): 0 is a cost that does not grow, 1 one that grows as its cause does, and nothing may be above that.
"""

import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch

from bench import (
    Contender,
    about,
    advancing,
    alternate,
    architecture,
    device_of,
    make_process,
    parser,
    save,
    spread,
    sst2,
)
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.state import Context
from kd_gym.tasks.data import TaskData
from kd_gym.tasks.tokens import TokenSplit

KINDS = ("hard", "response", "feature", "relation", "cls-last", "spherical")
Series = dict[int, DistillationProcess]


def of_length(train: TokenSplit, length: int) -> TokenSplit:
    """Rows that are all so long, of the same word pieces."""
    rows = min(2000, len(train.flat) // length)
    whole = torch.full((rows,), length)
    return TokenSplit(train.flat, torch.arange(rows) * length, whole, whole, train.labels[:rows])


def over(process: DistillationProcess, train: TokenSplit) -> DistillationProcess:
    """The same students on other rows."""
    other = DistillationProcess(
        train, process.lessons.teachers, process.init, process.recipe, process.students, process.device
    )
    other.reset(range(other.students), [Context()] * other.students)
    return other


def series(data: TaskData, device: torch.device) -> Iterator[tuple[str, Series]]:
    """Processes by size, one series after the other."""
    arch = architecture(data, 2, 128)
    one, train = make_process(data, arch, 1, device), data.split("train")
    yield "rows of data", {n: over(one, spread(train, n)) for n in sorted({1000, 4000, 16_000, len(train)})}
    yield "sequence length", {n: over(one, of_length(train, n)) for n in (8, 16, 32, 64, 128)}
    yield "students", {n: make_process(data, arch, n, device) for n in (1, 2, 4, 8, 16)}
    kinds = ("hard", "response", "feature", "relation")
    yield "teachers", {n: make_process(data, arch, 1, device, knowledge=kinds, teachers=n) for n in (1, 2, 4, 8)}
    yield "knowledge types", {n: make_process(data, arch, 1, device, knowledge=KINDS[:n]) for n in (1, 2, 4, 6)}


def exponent(times: Mapping[int, list[float]]) -> float:
    """The slope of log(time) over log(size)."""
    return float(
        np.polyfit([math.log(n) for n in times], [math.log(statistics.median(t)) for t in times.values()], 1)[0]
    )


def plot(file: Path, found: Mapping[str, Any]) -> None:
    """A panel for each series."""
    matplotlib.use("Agg")
    figure, grid = plt.subplots(2, 3, figsize=(9, 5), layout="constrained", sharey=True)
    for axes, (name, told) in zip(grid.flat, found.items(), strict=False):
        sizes = [int(n) for n in told["ms"]]
        middle = [statistics.median(times) for times in told["ms"].values()]
        axes.loglog(sizes, middle, "o-", color="#0072b2")
        axes.loglog(sizes, [middle[0] * n / sizes[0] for n in sizes], ":", color="#999999")
        axes.set_xlabel(name)
        axes.set_title(f"exponent {told['exponent']:.2f}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.minorticks_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("ms for an update of all")
    grid[0, 0].set_ylim(top=max(statistics.median(t) for told in found.values() for t in told["ms"].values()) * 1.5)
    figure.savefig(file.with_suffix(".png"), dpi=110)
    plt.close(figure)


def main() -> None:
    args = parser(__doc__, 5, 10).parse_args()
    device, data = device_of(args), sst2()
    found: dict[str, Any] = {}
    told = {**about(device, data), "series": found}

    def note(name: str, times: Mapping[int, list[float]]) -> None:
        found[name] = {"ms": {n: list(t) for n, t in times.items()}, "exponent": exponent(times)}
        line = "  ".join(f"{n}: {statistics.median(t):.1f}" for n, t in times.items())
        print(f"{name:16s} exponent {found[name]['exponent']:5.2f}   ms  {line}", flush=True)
        save(args.out, told)

    one = advancing(make_process(data, architecture(data, 2, 128), 1, device))
    counts = (10, 40, 160)
    made: dict[int, list[float]] = {n: [] for n in counts}
    for _ in range(args.repeats):
        for n in counts:
            (times,) = alternate({"": Contender(one)}, 1, n, device, warm=2).values()
            made[n].append(times[0] * n)
    note("updates made", made)
    for name, processes in series(data, device):
        contenders = {str(n): Contender(advancing(process)) for n, process in processes.items()}
        times = alternate(contenders, args.repeats, args.updates, device, warm=3)
        note(name, {int(n): t for n, t in times.items()})
        del contenders, processes
    if args.out:
        plot(args.out, found)


if __name__ == "__main__":
    main()
