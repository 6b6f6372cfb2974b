"""Milliseconds and memory of one update of LGTM, IKD and MetaDistil, beside their naive forms and plain distillation.

    python benchmarks/speed/controllers.py [--repeats 5] [--updates 16] [--device cpu] [--out FILE]

The work: teacher MiniLM-L6, student 2 x 128, batch 32, SST-2 (or the embedded sentences where its files are not
given). The contenders:

- NAME, random order: with modules (see `naive.py`), each batch padded to its longest row, as LGTM's code was published.
- NAME, bucketed: the same on the rows that kd-gym trains on.
- kd-gym: NAME: the controller, exact second derivatives, in float32; `bfloat16`, with the teacher's matrix products in
  it, as kd-gym runs it where that is fast; `faithful`, LGTM with the released code's formula and dropout, in float32.
- kd-gym: plain KD: labels and looked-up soft targets.

Megabytes are those of each contender's own process at its peak in the widest bucket (of the device, where it is not a
CPU), less what it held when its models and optimisers stood. They are measured after the times.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import (
    Contender,
    Run,
    about,
    advancing,
    alternate,
    architecture,
    bars,
    device_of,
    make_process,
    parser,
    random_start,
    random_store,
    ratio,
    save,
    sst2,
    table,
)
from kd_gym.backend.encoder import Precision
from kd_gym.backend.live import LiveTeacher, open_teacher
from kd_gym.backend.memory import forget_peak, peak_bytes
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.state import Context
from kd_gym.backend.terms import Recipe
from kd_gym.experiments.setup import EnvSpec, agent_for
from kd_gym.tasks import embedded
from kd_gym.tasks.batches import Buckets, RowStream
from kd_gym.tasks.data import TaskData
from naive import NAIVE, RATE, Naive

STUDENT, BATCH = (2, 128), 32  # layers and width
PLAIN = "kd-gym: plain KD"
AGENTS = {"LGTM": "lgtm", "IKD": "ikd", "MetaDistil": "meta-distil"}
ORDERS = {"random order": 0.25, "bucketed": 1.0}  # of rows, and the share of updates that are made in it
OURS = (*(f"kd-gym: {name}{form}" for name in AGENTS for form in ("", ", bfloat16")), "kd-gym: LGTM, faithful")
NAMES = (*(f"{name}, {order}" for name in NAIVE for order in ORDERS), *OURS, PLAIN)
Drawn = Callable[[int], tuple[Tensor, Tensor]]  # rows of train and of reward, at an update


def in_buckets(data: TaskData) -> Drawn:
    """The rows that kd-gym's first student trains on, and those that its controllers look at."""
    train, held = data.split("train"), data.split("reward")
    streams = [RowStream(Buckets(s.length, BATCH, key), 0, 1.0) for s, key in ((train, Recipe.data_key), (held, 0))]
    return lambda update: tuple(torch.from_numpy(stream.rows(update)[0]) for stream in streams)  # type: ignore[return-value]


def at_random(data: TaskData) -> Drawn:
    """Shuffled rows of train and rows of reward in their order, as in LGTM's released code."""
    shuffled = torch.randperm(len(data.split("train")), generator=torch.Generator().manual_seed(0))
    held = torch.arange(len(data.split("reward")))

    def drawn(update: int) -> tuple[Tensor, Tensor]:
        places = torch.arange(BATCH) + update * BATCH
        return shuffled[places % len(shuffled)], held[places % len(held)]

    return drawn


def with_modules(naive: Naive, drawn: Drawn, device: torch.device) -> Run:
    """Updates of a naive form on these rows."""

    def run(first: int, count: int) -> None:
        for update in range(first, first + count):
            rows, held = drawn(update)
            naive.update(rows.to(device), held.to(device))

    return run


def live_teacher(data: TaskData, device: torch.device, untuned: bool, precision: Precision) -> LiveTeacher:
    """MiniLM-L6 with a head of zeros, or with a random one, which stands for a tuned teacher's."""
    network, start = open_teacher(embedded.minilm(), data.vocabulary, data.classes, device, untuned=True)
    if not untuned:
        random = torch.Generator().manual_seed(0)
        start["classifier.weight"] = torch.randn(start["classifier.weight"].shape, generator=random) * 0.02
    return LiveTeacher(network, {"full": start}, 1, untuned, device, precision=precision)


def controlled(data: TaskData, device: torch.device, name: str, form: str) -> Run:
    """Updates of a process that a controller of kd-gym hooks into; the looked-up outputs nobody reads."""
    agent, _, spec = agent_for(AGENTS[name], EnvSpec("KnowledgeSelect-SST2", backend="tiny"))
    env = spec.make()
    recipe = replace(
        env.family.recipe.process, horizon=1_000_000, batch=BATCH, learning_rate=RATE, decay=0.0, scale_batches=0
    )
    live = live_teacher(
        data, device, agent.options["teacher"] == "untuned", "bfloat16" if form == "bfloat16" else "float32"
    )
    stores, start = {"full": (random_store(data, device),)}, random_start(data, architecture(data, *STUDENT))
    process = DistillationProcess(data.split("train"), stores, start, recipe, device=device, live=live)
    process.reset([0], [Context()])
    controller = agent(env, argument="mode=faithful" if form == "faithful" else "")
    controller.recipe = SimpleNamespace(process=recipe)  # type: ignore[assignment]
    episodes: Any = SimpleNamespace(process=process, seed=[0])
    controller.begin(SimpleNamespace(episodes=episodes, lab=SimpleNamespace(data=data, device=device)))
    control = env.family.decide([controller.act(np.zeros(0))], episodes).control

    def run(first: int, count: int) -> None:
        process.update[:] = first
        process.advance(control, count)

    return run


def contender(name: str, data: TaskData, device: torch.device, made: dict[str, Naive]) -> Contender:
    """One of `NAMES`. A naive form has one set of models for both orders of rows: those `made` before."""
    arch = architecture(data, *STUDENT)
    if name == PLAIN:
        return Contender(advancing(make_process(data, arch, 1, device, BATCH)))
    whose, _, rest = name.rpartition(": ")
    which, _, form = rest.partition(", ")
    if whose:
        return Contender(controlled(data, device, which, form))
    if which not in made:
        made[which] = NAIVE[which](data, arch, device)
    drawn = in_buckets(data) if form == "bucketed" else at_random(data)
    return Contender(with_modules(made[which], drawn, device), share=ORDERS[form])


def memory(name: str, data: TaskData, device: torch.device) -> float:
    """Megabytes at the peak of updates beyond models and optimisers, which stand after the first update."""
    run = contender(name, data, device, {}).run
    buckets = Buckets(data.split("train").length, BATCH, Recipe.data_key)
    widest = (update for update in itertools.count() if buckets.visit(update)[0] == len(buckets.rows) - 1)
    run(next(widest), 1)
    forget_peak(device)
    before = peak_bytes(device)  # which is what it holds now
    for update in itertools.islice(widest, 3):
        run(update, 1)
    return (peak_bytes(device) - before) / 2**20


def memory_apart(name: str, device: torch.device) -> float:
    """The same in a process of its own, where what a tensor held is given back as soon as it is gone."""
    told = subprocess.run(
        [sys.executable, __file__, "--device", device.type, "--memory", name],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(told.stdout)


def ratios(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """How many times as long as its naive forms, and as plain distillation, each of kd-gym's takes."""
    told = {}
    for name in OURS:
        which = name.removeprefix("kd-gym: ").partition(",")[0]
        told[name] = {other: ratio(times, name, other) for other in (*(f"{which}, {o}" for o in ORDERS), PLAIN)}
    return told


def main() -> None:
    options = parser(__doc__, repeats=5, updates=16)
    options.add_argument("--memory", choices=NAMES, help="print the megabytes of one contender, and end")
    args = options.parse_args()
    device, data = device_of(args), sst2()
    if args.memory:
        sys.stdout.write(f"{memory(args.memory, data, device)}\n")
        return
    made: dict[str, Naive] = {}
    everyone = {name: contender(name, data, device, made) for name in NAMES}
    told = {"student": STUDENT, "batch": BATCH, **about(device, data)}
    megabytes: dict[str, float] = {}

    def keep(times: dict[str, list[float]]) -> None:
        save(args.out, {**told, "ms": times, "ratio": ratios(times), "megabytes": megabytes})

    times = alternate(everyone, args.repeats, args.updates, device, keep, warm=2)
    print(f"batch {BATCH}, {data.source}, torch {torch.__version__}, {torch.get_num_threads()} threads, {device}")
    print(table(times, PLAIN))
    for name, beside in ratios(times).items():
        print(f"{name} takes {', '.join(f'{found:.2f} of {other}' for other, found in beside.items())}")
    bars(args.out, times, f"Gradient controllers, student {STUDENT[0]} x {STUDENT[1]}, batch {BATCH}, {data.source}")
    for name in NAMES:
        if not name.endswith("random order"):  # whose rows are others
            megabytes[name] = memory_apart(name, device)
            keep(times)
            print(f"{name}: {megabytes[name]:.0f} MB beyond models and optimisers", flush=True)


if __name__ == "__main__":
    main()
