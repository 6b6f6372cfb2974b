"""Milliseconds and memory of one LGTM update: `kd_gym.agents.lgtm` beside the same with modules and deep copies.

    python benchmarks/speed/lgtm.py [--repeats 5] [--updates 4] [--batch 32] [--out FILE]

The work: teacher MiniLM-L6 with a head of zeros, student 2 x 128, SST-2 (or the embedded sentences where its files are
not given), dynamic padding. The contenders:

- modules: the released code's algorithm with `transformers` modules: a deep copy of student and optimiser for the
  look-ahead, two separate passes of the teacher for the finite differences, parameters moved in place.
- faithful: the same formula in kd-gym, dropout 0.1 included, in float32.
- corrected: kd-gym's default, exact second derivatives and one pass back through the teacher, in float32.
- corrected, bfloat16: the same with the teacher's matrix products in bfloat16, as kd-gym runs it where that is fast.

Each repeat runs every contender on the same rows in shuffled order; ratios are medians of those within a repeat.
Memory is each contender's own process' peak, less what it held when its models and optimisers stood.
"""

import argparse
import copy
import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from kd_gym.agents.lgtm import LGTM, LGTMConfig
from kd_gym.backend.checkpoint import StudentInit
from kd_gym.backend.encoder import Architecture
from kd_gym.backend.live import LiveTeacher, open_teacher
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.state import Context
from kd_gym.backend.store import TeacherStore
from kd_gym.backend.terms import Control, Recipe
from kd_gym.experiments.setup import EnvSpec, agent_for
from kd_gym.tasks import embedded
from kd_gym.tasks.batches import Buckets, RowStream
from kd_gym.tasks.data import TaskData, load_data

CONTENDERS = ("modules", "faithful", "corrected", "corrected, bfloat16")
CPU = torch.device("cpu")
Update = Callable[[torch.Tensor, int], None]


def modules(data: TaskData, batch: int) -> Update:
    """The released algorithm, as it is written there."""
    vocabulary = len(data.tokenizer)
    teacher = AutoModelForSequenceClassification.from_pretrained(embedded.minilm(), num_labels=data.classes)
    config = BertConfig(
        vocab_size=vocabulary, num_hidden_layers=2, hidden_size=128, num_attention_heads=4, intermediate_size=512,
        num_labels=data.classes,
    )  # fmt: skip
    student = BertForSequenceClassification(config)
    for model in (teacher, student):
        torch.nn.init.zeros_(model.classifier.weight)
        torch.nn.init.zeros_(model.classifier.bias)
    rate = 3e-5
    student_adam = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0)
    teacher_adam = torch.optim.AdamW(teacher.parameters(), lr=rate, weight_decay=0.0)
    train, held = data.split("train"), data.split("reward")

    def inputs(split: object, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = split.batch(rows)  # type: ignore[attr-defined]
        return {"input_ids": data.vocabulary[tokens.ids], "attention_mask": tokens.mask.long()}

    def kl(target: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        return F.kl_div(said.log_softmax(-1), target.detach().softmax(-1), reduction="batchmean")

    def teaching(x: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        logits = teacher(**x).logits
        return 0.4 * kl(student(**x).logits, logits) + 0.6 * F.cross_entropy(logits, y)

    def update(rows: torch.Tensor, number: int) -> None:
        x, y = inputs(train, rows), train.labels[rows]
        held_rows = (torch.arange(batch) + number * batch) % len(held)
        xe, ye = inputs(held, held_rows), held.labels[held_rows]
        teacher.train()
        student.train()
        ahead = copy.deepcopy(student)
        adam = torch.optim.AdamW(ahead.parameters(), lr=1e-4, weight_decay=0.0)
        adam.load_state_dict(copy.deepcopy(student_adam.state_dict()))
        said = teacher(**x).logits
        own = ahead(**x).logits
        kl(said, own).backward()
        adam.step()
        adam.zero_grad()
        teacher.zero_grad()
        (0.4 * kl(own, said) + 0.6 * F.cross_entropy(said, y)).backward()
        aux = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in teacher.parameters()]
        v = torch.autograd.grad(F.cross_entropy(ahead(**xe).logits, ye), list(ahead.parameters()))
        eps = 0.01 / torch.cat([g.flatten() for g in v]).norm()
        teacher.eval()
        student.eval()
        sides = []
        for shift in (1, -2):
            with torch.no_grad():
                for p, g in zip(student.parameters(), v, strict=True):
                    p += shift * eps * g
            sides.append(torch.autograd.grad(teaching(x, y), list(teacher.parameters())))
        with torch.no_grad():
            for p, g in zip(student.parameters(), v, strict=True):
                p += eps * g
        for p, a, plus, minus in zip(teacher.parameters(), aux, *sides, strict=True):
            p.grad = a - rate * (plus - minus) / (2 * eps)
        teacher_adam.step()
        with torch.no_grad():
            said = teacher(**x).logits
        student_adam.zero_grad()
        kl(said, student(**x).logits).backward()
        student_adam.step()

    return update


def ours(data: TaskData, batch: int, kind: str) -> Update:
    """The controller of kd-gym, on a process with random looked-up outputs that nobody reads."""
    arch = Architecture(2, 128, 4, 512, len(data.vocabulary), data.classes)
    generator = torch.Generator().manual_seed(0)
    shapes = {"word": len(data.tokenizer), "position": 512, "segment": 2}
    shared = {k: torch.randn(n, arch.hidden, generator=generator) * 0.05 for k, n in shapes.items()}
    rows = len(data.split("train"))
    store = TeacherStore(torch.zeros(rows, data.classes), torch.zeros(1, 6, 384).expand(rows, -1, -1), {})
    network, start = open_teacher(embedded.minilm(), data.vocabulary, data.classes, CPU, untuned=True)
    live = LiveTeacher(network, {"full": start}, 1, untuned=True, mixed=kind.endswith("bfloat16"))
    recipe = Recipe(("hard", "response"), 1_000_000, batch, 1e-4, 1.0, scale_batches=0)
    init = StudentInit(arch, shared, data.vocabulary)
    process = DistillationProcess(data.split("train"), {"full": (store,)}, init, recipe, live=live)
    process.reset([0], [Context()])
    spec = agent_for("lgtm", EnvSpec("KnowledgeSelect-SST2", backend="tiny"))[2]
    controller = LGTM(spec.make(), config=LGTMConfig(mode="faithful" if kind == "faithful" else "corrected"))
    controller.recipe = SimpleNamespace(process=recipe)  # type: ignore[assignment]
    lab = SimpleNamespace(data=data, device=CPU)
    controller.begin(SimpleNamespace(episodes=SimpleNamespace(process=process, seed=[0]), lab=lab))

    def update(rows: torch.Tensor, number: int) -> None:
        process.update[:] = number
        process.advance(Control(torch.tensor([[0.0, 1.0]])), 1)

    return update


def contender(name: str, data: TaskData, batch: int) -> Update:
    """One of `CONTENDERS`."""
    return modules(data, batch) if name == "modules" else ours(data, batch, name)


def resident(what: str) -> float:
    """Megabytes of this process: `VmRSS` now, `VmHWM` at most since the mark was set."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def memory(name: str, batch: int) -> float:
    """Megabytes at the peak of updates beyond models and optimisers, which stand after the first update."""
    data = load_data("SST2", "auto", embedded.minilm())
    update = contender(name, data, batch)
    rows = longest(data, batch)
    update(rows, 0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for number in range(1, 4):
        update(rows, number)
    return resident("VmHWM") - before


def longest(data: TaskData, batch: int) -> torch.Tensor:
    """A batch of long rows."""
    return data.split("train").by_length()[-4 * batch :: 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", choices=CONTENDERS, help="print the megabytes of one contender, and end")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.memory:
        sys.stdout.write(f"{memory(args.memory, args.batch)}\n")
        return

    data = load_data("SST2", "auto", embedded.minilm())
    updates = {name: contender(name, data, args.batch) for name in CONTENDERS}
    stream = RowStream(Buckets(data.split("train").length, args.batch, Recipe.data_key), 0, 1.0)

    def run(name: str, first: int) -> float:
        begin = time.perf_counter()
        for number in range(first, first + args.updates):
            updates[name](torch.from_numpy(stream.rows(number)[0]), number)
        return (time.perf_counter() - begin) / args.updates * 1e3

    for name in CONTENDERS:
        run(name, 0)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    shuffle = random.Random(0)
    for repeat in range(args.repeats):
        for name in shuffle.sample(CONTENDERS, len(CONTENDERS)):
            times[name].append(run(name, (repeat + 1) * args.updates))
    megabytes = {
        name: float(
            subprocess.run(
                [sys.executable, __file__, "--memory", name, "--batch", str(args.batch)],
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for name in CONTENDERS
    }  # fmt: skip
    print(f"batch {args.batch}, {data.source}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'contender':22s} {'ms':>8s} {'min':>8s} {'max':>8s} {'of modules':>11s} {'MB beyond models':>17s}")
    ratios = {n: float(np.median(np.array(times[n]) / np.array(times["modules"]))) for n in CONTENDERS}
    for name in CONTENDERS:
        spread = f"{min(times[name]):8.0f} {max(times[name]):8.0f}"
        print(f"{name:22s} {np.median(times[name]):8.0f} {spread} {ratios[name]:11.2f} {megabytes[name]:17.0f}")
    if args.out:
        machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        about = {"batch": args.batch, "source": data.source, "machine": machine}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        told = {**about, "ms": times, "ratio": ratios, "megabytes": megabytes}
        args.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
