"""The teacher store: what building it, a lookup and memory cost, and whether processes share its pages.

    python benchmarks/speed/store.py [--rows 4096] [--repeats 3] [--updates 40] [--device cpu] [--out FILE]

1. Building a store over rows of SST-2's `train` beside a bare pass of the same model (MiniLM-L6) over the same padded
   batches in the same order. The bare pass finds its model and batches ready, and asks for logits alone; building
   hashes the checkpoint, loads it, pads, runs it, keeps all [CLS] states and writes. Hash and model are loaded once
   whatever the rows: what they take is told apart, and the ratio without it is that of a large split.
2. A lookup beside an update of `KnowledgeSelect-SST2` (student 2 x 128, batch 64), in a mapped store of the full shape.
3. Two processes map that store and look up all of its rows: the anonymous memory that this adds to a process, and the
   pages of the mapping that both hold. They live on the CPU whatever the device: a GPU gets a copy, at its start.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import (
    Contender,
    about,
    advancing,
    alternate,
    anonymous,
    architecture,
    bars,
    device_of,
    parser,
    random_start,
    ratio,
    save,
    spread,
    sst2,
    table,
    verdict,
)
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.state import Context
from kd_gym.backend.store import TeacherStore, open_store, store_key, teacher_store
from kd_gym.backend.teacher import load_teacher, teacher_inputs
from kd_gym.backend.terms import Recipe
from kd_gym.envs.lab import quiet
from kd_gym.files import write_json
from kd_gym.tasks import embedded
from kd_gym.tasks.data import TaskData

BATCH = 64  # rows of a pass: what the store takes
BUILT, LOOKED_UP, ANONYMOUS = 1.15, 0.02, 300  # times a bare pass, part of an update, megabytes: at most


def some_rows(data: TaskData, count: int) -> TaskData:
    """The task with so many rows of `train`, evenly spaced."""
    return replace(data, _splits={"train": spread(data.split("train"), count)})


def building(data: TaskData, device: torch.device, folder: Path) -> tuple[dict[str, Contender], int]:
    """Milliseconds are those of a batch; the whole store is built whatever is asked for."""
    teacher = folder / "teacher"
    torch.manual_seed(0)
    model = load_teacher(embedded.minilm(), device, data.classes).eval()
    model.save_pretrained(teacher)
    rows = data.split("train").to(device)
    vocabulary = data.vocabulary.to(device)
    batches = [teacher_inputs(rows.batch(some), vocabulary, model.config) for some in rows.by_length().split(BATCH)]

    @torch.inference_mode()
    def forward(first: int, count: int) -> None:
        for inputs in batches[:count]:
            model(**inputs)

    def build(first: int, count: int) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            os.environ["KD_GYM_CACHE"] = cache
            teacher_store(teacher, data, "train", device, quiet)

    def once(first: int, count: int) -> None:
        store_key(teacher, data, "train")
        load_teacher(teacher, device)

    made = {"bare pass": forward, "kd-gym: store": build, "of it, hash and model": once}
    return {name: Contender(run) for name, run in made.items()}, len(batches)


def full_store(data: TaskData, folder: Path) -> None:
    """A store of the real shape of random numbers, on the disk to its last byte."""
    rows, random = len(data.split("train")), np.random.default_rng(0)
    cls = np.lib.format.open_memmap(folder / "cls.npy", "w+", np.float16, (rows, 6, 384))
    for begin in range(0, rows, 4096):
        cls[begin : begin + 4096] = random.standard_normal((min(4096, rows - begin), 6, 384), np.float32)
    np.save(folder / "logits.npy", random.standard_normal((rows, data.classes), np.float32))
    write_json(folder / "key.json", {"key": {}, "seconds": 0.0})
    cls.flush()  # pages that wait to be written count as dirty


def looking_up(data: TaskData, store: TeacherStore, device: torch.device, updates: int) -> dict[str, Contender]:
    """An update, and a lookup of the rows of an update."""
    recipe = replace(Recipe(), horizon=1_000_000)
    stores = {"full": (store.to(device),)}
    process = DistillationProcess(
        data.split("train"), stores, random_start(data, architecture(data, 2, 128)), recipe, 1, device
    )
    process.reset([0], [Context()])
    lessons = process.lessons
    drawn = [lessons.rows([0], [update])[0] for update in range(updates)]

    def look_up(first: int, count: int) -> None:
        for rows in drawn[first : first + count]:
            lessons.teach([0], rows)

    return {"update": Contender(advancing(process)), "kd-gym: lookup": Contender(look_up)}


# ---------------------------------------------------------------------- processes


def look_at_all(folder: Path) -> None:
    """What a second process does: look up all rows, tell its memory before and after, and wait to be looked at."""
    torch.ones(64, 64) @ torch.ones(64, 64)  # what torch makes for itself at its first work is none of the store's
    before = anonymous()
    store = open_store(folder, {})
    rows = torch.randperm(len(store.logits), generator=torch.Generator().manual_seed(0))
    layers = torch.arange(store.layers)
    opened, most = anonymous(), 0.0
    for some in rows.split(BATCH):
        store.get(some.unsqueeze(0), layers)
        most = max(most, anonymous())
    sys.stdout.write(json.dumps({"before": before, "opened": opened, "most": most, "after": anonymous()}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


def mapping(process: int, file: Path) -> dict[str, float]:
    """Megabytes of a process's mapping of a file, by kind, from `/proc/PID/smaps`."""
    found, inside = Counter[str](), False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, *words = line.split()
        if not name.endswith(":"):  # the head of a mapping
            inside = line.endswith(str(file))
        elif inside and words[-1:] == ["kB"]:
            found[name[:-1]] += int(words[0])
    kinds = ("Size", "Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Anonymous")
    return {kind: found[kind] / 1024 for kind in kinds}


def together(folder: Path) -> dict[str, Any]:
    """Two processes that have looked up all rows: the first one's anonymous memory, and the second one's mapping."""
    command = [sys.executable, __file__, "--child", str(folder)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        told = [json.loads(one.stdout.readline()) for one in both if one.stdout]
        return {"anonymous": told[0], "mapping": mapping(both[1].pid, folder.resolve() / "cls.npy")}
    finally:
        for one in both:
            one.communicate()


def main() -> None:
    options = parser(__doc__, 3, 40)
    options.add_argument("--rows", type=int, default=4096, help="to build a store of")
    options.add_argument("--child", type=Path, help="look up all rows of this store and wait: a part of the benchmark")
    args = options.parse_args()
    if args.child:
        look_at_all(args.child)
        return
    device, data = device_of(args), sst2()
    told: dict[str, Any] = {**about(device, data), "rows": args.rows}
    print(f"{data.source}, {told['device']}, {told['threads']} threads")

    def keep(part: str, **figures: Any) -> None:
        told.setdefault(part, {}).update(figures)
        save(args.out, told)

    kept = os.environ.get("KD_GYM_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        try:
            contenders, count = building(some_rows(data, args.rows), device, Path(folder))
            built = alternate(contenders, args.repeats, count, device, lambda ms: keep("building", ms_of_a_batch=ms))
        finally:
            os.environ.pop("KD_GYM_CACHE") if kept is None else os.environ.update(KD_GYM_CACHE=kept)
    bare, whole, fixed = built.values()
    times = ratio(built, "kd-gym: store", "bare pass")
    large = statistics.median((w - f) / b for b, w, f in zip(bare, whole, fixed, strict=True))
    keep("building", times=times, times_without_hash_and_model=large)
    print(table(built, "bare pass", "ms/batch"))
    print(verdict(f"building a store of {args.rows} rows, times a bare pass", times, BUILT, ".3f"))
    print(verdict("the same without hash and model, which are loaded once", large, BUILT, ".3f"))
    bars(args.out, built, f"A teacher's store of {args.rows} rows, {told['device']}", f"batch of {BATCH} rows")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full_store(data, folder)
        contenders = looking_up(data, open_store(folder, {}), device, 6 + args.repeats * args.updates)
        found = alternate(contenders, args.repeats, args.updates, device, lambda ms: keep("lookup", ms=ms))
        share = ratio(found, "kd-gym: lookup", "update")
        keep("lookup", part_of_an_update=share)
        print(table(found, "update", "ms"))
        print(verdict("a lookup, of an update", share, LOOKED_UP))

        begin = time.perf_counter()
        memory = together(folder)
        keep("memory", megabytes=memory, seconds=time.perf_counter() - begin)
    most = memory["anonymous"]["most"] - memory["anonymous"]["before"]
    pages = memory["mapping"]
    shared = pages["Shared_Clean"] + pages["Shared_Dirty"]
    print(verdict("anonymous memory that the store adds to a process, MB", most, ANONYMOUS, ".1f"))
    print(f"a process that had just imported kd-gym held {memory['anonymous']['before']:.0f} MB of it")
    print(
        f"cls.npy, {pages['Size']:.0f} MB: a second process holds {pages['Rss']:.0f} MB of it, {shared:.0f} shared, "
        f"{pages['Pss']:.0f} by its part in them, {pages['Anonymous']:.0f} copied: "
        f"{'met' if shared >= 0.99 * pages['Rss'] > 0 else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
