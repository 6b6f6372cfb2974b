"""What the speed benchmarks share: the work, the clock, and how results are told.

Ratios are taken within one run whose contenders alternate, since absolute times drift by a fifth and more: each repeat
runs every contender on the same rows in shuffled order; a figure is the median over repeats, a ratio the median of the
ratios within a repeat. Results are written after each repeat, so an interrupted benchmark keeps what it has.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from kd_gym.backend.checkpoint import StudentInit
from kd_gym.backend.encoder import Architecture, Precision
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.state import Context
from kd_gym.backend.store import TeacherStore
from kd_gym.backend.terms import Control, Recipe
from kd_gym.envs.lab import resolve_device
from kd_gym.errors import KDGymError
from kd_gym.experiments.machine import this_machine
from kd_gym.files import write_text
from kd_gym.tasks import embedded
from kd_gym.tasks.data import TaskData, load_data
from kd_gym.tasks.tokens import TokenSplit

TAU = 2.0
# Makes so many (second) updates from this one (first) on; gives their seconds where not all of the call is updates.
Run = Callable[[int, int], float | None]


def parser(doc: str | None, repeats: int, updates: int) -> argparse.ArgumentParser:
    """The options that all of them have; `doc` is the script's own."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats)
    made.add_argument("--updates", type=int, default=updates, help="of each contender in a repeat")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--out", type=Path, help="a JSON file; a plot comes beside it")
    return made


def device_of(args: argparse.Namespace) -> torch.device:
    """The device that was asked for; ends with a word where there is none."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return resolve_device(args.device)
    except KDGymError as problem:
        raise SystemExit(str(problem)) from None


def sst2() -> TaskData:
    """SST-2 under MiniLM's tokenizer (or the embedded sentences, where its files are not given)."""
    return load_data("SST2", "auto", embedded.minilm())


def spread(train: TokenSplit, rows: int) -> TokenSplit:
    """So many of the rows, evenly spaced over all of them."""
    chosen = torch.linspace(0, len(train) - 1, min(rows, len(train))).long()
    return TokenSplit(train.flat, *(part[chosen] for part in (train.start, train.length, train.second, train.labels)))


def architecture(data: TaskData, layers: int, hidden: int) -> Architecture:
    """A student with heads of 32 and the usual feed-forward width."""
    return Architecture(layers, hidden, max(1, hidden // 32), 4 * hidden, len(data.vocabulary), data.classes)


def random_store(data: TaskData, device: torch.device) -> TeacherStore:
    """A store of the real shape with random numbers: a lookup costs the same whatever they are."""
    rows = len(data.split("train"))
    logits = torch.randn(rows, data.classes, generator=torch.Generator().manual_seed(0))
    return TeacherStore(logits, torch.zeros(rows, 6, 384, dtype=torch.float16), {}).to(device)


def random_start(data: TaskData, arch: Architecture) -> StudentInit:
    """Students that start anywhere."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"word": len(data.tokenizer), "position": 512, "segment": 2}
    shared = {k: torch.randn(n, arch.hidden, generator=generator) * 0.05 for k, n in shapes.items()}
    return StudentInit(arch, shared, data.vocabulary)


def make_process(
    data: TaskData,
    arch: Architecture,
    students: int,
    device: torch.device,
    batch: int = 32,
    knowledge: Sequence[str] = ("hard", "response"),
    teachers: int = 1,
    kind: type[DistillationProcess] = DistillationProcess,
    precision: Precision = "float32",
) -> DistillationProcess:
    """This backend with so many students that have just been reset."""
    stores = (random_store(data, device),) * teachers
    recipe = Recipe(tuple(knowledge), 1_000_000, batch, learning_rate=1e-4, tau=TAU, precision=precision)
    process = kind(data.split("train"), {"full": stores}, random_start(data, arch), recipe, students, device)
    process.reset(list(range(students)), [Context()] * students)
    return process


def even(process: DistillationProcess) -> Control:
    """The uniform control."""
    kinds = len(process.knowledge)
    return Control(torch.full((process.students, kinds), 1 / kinds))


def advancing(process: DistillationProcess) -> Run:
    """Updates of a process under the uniform control."""

    def run(first: int, count: int) -> None:
        process.update[:] = first
        process.advance(even(process), count)

    return run


def soft(target: Tensor, said: Tensor, tau: float = 1.0) -> Tensor:
    """tau^2 KL(target || said), the mean over samples, as everybody writes it."""
    return tau**2 * F.kl_div((said / tau).log_softmax(-1), (target / tau).softmax(-1), reduction="batchmean")


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Attributes:
        run: does the work.
        students: how many it trains at once: times are those of an update of one of them.
        share: the part of a repeat's updates that it makes, where one costs as much as any other and takes long.
    """

    run: Run
    students: int = 1
    share: float = 1.0


def anonymous() -> float:
    """Megabytes of anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    contenders: Mapping[str, Contender],
    repeats: int,
    updates: int,
    device: torch.device,
    keep: Callable[[dict[str, list[float]]], None] = lambda _: None,
    warm: int = 6,
) -> dict[str, list[float]]:
    """Milliseconds of an update of one student, by contender and repeat; `keep` is shown them after each repeat."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender.run(0, warm)
    shuffle = random.Random(0)
    for repeat in range(repeats):
        for name in shuffle.sample(list(contenders), len(contenders)):
            one = contenders[name]
            count = max(1, round(updates * one.share))
            synchronise(device)
            begin = time.perf_counter()
            inside = one.run(warm + repeat * updates, count)
            synchronise(device)
            spent = time.perf_counter() - begin if inside is None else inside
            times[name].append(spent / count / one.students * 1e3)
        keep(times)
    return times


def ratio(times: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    """How many times as long one takes as the other: the median of the ratios within a repeat."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def about(device: torch.device, data: TaskData | None = None) -> dict[str, Any]:
    """What the figures depend on."""
    told = {k: v for k, v in asdict(this_machine(device)).items() if k != "code"}
    return {**told, "transformers": transformers.__version__, **({"source": data.source} if data else {})}


def table(times: Mapping[str, Sequence[float]], to: str, unit: str = "ms/update") -> str:
    """Median, least and most of each contender, and how many times as long as `to` it takes."""
    width = max(map(len, times))
    lines = [f"{'contender':{width}s} {unit:>10s} {'min':>9s} {'max':>9s}  times {to}"]
    for name, found in times.items():
        lines.append(
            f"{name:{width}s} {statistics.median(found):10.2f} {min(found):9.2f} {max(found):9.2f}"
            f"  {ratio(times, name, to):.2f}"
        )
    return "\n".join(lines)


def save(file: Path | None, told: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all, where one was asked for."""
    if file is not None:
        write_text(file, json.dumps(told, indent=1) + "\n")


def verdict(what: str, value: float, target: float, form: str = ".1%") -> str:
    """A figure beside what it may be at most."""
    return f"{what}: {value:{form}}, at most {target:{form}} wanted: {'met' if value <= target else 'MISSED'}"


def bars(file: Path | None, times: Mapping[str, Sequence[float]], title: str, work: str = "update") -> None:
    """A plot beside the JSON file: a bar for each contender, on a logarithmic scale."""
    if file is None:
        return
    matplotlib.use("Agg")
    names = sorted(times, key=lambda name: statistics.median(times[name]))
    middle = [statistics.median(times[name]) for name in names]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(names) + 1.1), layout="constrained")
    ours = ["#0072b2" if name.startswith("kd-gym") else "#999999" for name in names]
    axes.barh(names, middle, color=ours)
    axes.errorbar(
        middle, names, fmt="none", ecolor="black", elinewidth=1,
        xerr=[[m - min(times[n]) for n, m in zip(names, middle, strict=True)],
              [max(times[n]) - m for n, m in zip(names, middle, strict=True)]],
    )  # fmt: skip
    for name, value in zip(names, middle, strict=True):
        axes.annotate(
            f" {value:.3g}" if value < 1000 else f" {value:.0f}", (max(times[name]), name), va="center", fontsize=8
        )
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel(f"milliseconds for one {work} of one student (median, least and most)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file.with_suffix(".png"), dpi=110)
    plt.close(figure)
