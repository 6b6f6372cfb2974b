"""Milliseconds for one distillation update: this backend beside the same written by hand, in one alternating run.

    python benchmarks/speed/updates.py [--layers 2 --hidden 128] [--repeats 5] [--updates 40] [--out FILE]

The work: tau^2 KL + cross-entropy, batch 32, AdamW, dropout 0, MiniLM-L6 as the teacher, SST-2 (or the embedded
sentences where its files are not given). The contenders:

- naive: `transformers` modules, the teacher in the loop, everything padded to 128.
- tuned: `transformers` modules with looked-up logits, length buckets and a fused optimiser.
- kd-gym: this backend, N = 1, and N = 4 per student, with the same two knowledge types.
- env: what `KnowledgeSelect`, and `TeacherWeight` at instance granularity, add on top of training and evaluation
  (control, observation, reward, info).

Each repeat runs every contender on the same rows in shuffled order; figures are medians over repeats of the mean time
of an update, ratios are medians of the ratios within a repeat.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from kd_gym.backend.checkpoint import StudentInit
from kd_gym.backend.encoder import Architecture
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.state import Context
from kd_gym.backend.store import TeacherStore
from kd_gym.backend.terms import Control, Recipe
from kd_gym.envs.episodes import EpisodeConfig, Episodes
from kd_gym.envs.family import Family
from kd_gym.envs.knowledge_select import KnowledgeSelect
from kd_gym.envs.lab import Lab, Teacher
from kd_gym.envs.recipes import Origin
from kd_gym.envs.teacher_weight import TeacherWeight
from kd_gym.tasks import embedded
from kd_gym.tasks.data import TaskData, load_data

BATCH, TAU = 32, 2.0


def random_store(data: TaskData) -> TeacherStore:
    """A store of the real shape with random numbers: a lookup costs the same whatever they are."""
    rows = len(data.split("train"))
    generator = torch.Generator().manual_seed(0)
    cls = torch.zeros(rows, 6, 384, dtype=torch.float16)
    return TeacherStore(torch.randn(rows, data.classes, generator=generator), cls, {})


def kd_loss(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """tau^2 KL + cross-entropy, as everybody writes it."""
    soft = F.kl_div((student / TAU).log_softmax(-1), (teacher / TAU).softmax(-1), reduction="batchmean")
    return TAU**2 * soft + F.cross_entropy(student, labels)


def student_module(arch: Architecture, vocabulary: int) -> BertForSequenceClassification:
    """The same student as a `transformers` module."""
    config = BertConfig(
        vocab_size=vocabulary,
        num_hidden_layers=arch.layers,
        hidden_size=arch.hidden,
        num_attention_heads=arch.heads,
        intermediate_size=arch.intermediate,
        num_labels=arch.classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).train()


Update = Callable[[torch.Tensor, int], None]


def naive(data: TaskData, arch: Architecture) -> Update:
    """The teacher in the loop, everything padded to 128."""
    student = student_module(arch, len(data.tokenizer))
    teacher = AutoModelForSequenceClassification.from_pretrained(embedded.minilm(), num_labels=data.classes).eval()
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4)
    train = data.split("train")

    def update(rows: torch.Tensor, width: int) -> None:
        tokens = train.batch(rows, 128)
        inputs = {"input_ids": data.vocabulary[tokens.ids], "attention_mask": tokens.mask.long()}
        with torch.no_grad():
            said = teacher(**inputs).logits
        kd_loss(student(**inputs).logits, said, train.labels[rows]).backward()
        optimiser.step()
        optimiser.zero_grad()

    return update


def tuned(data: TaskData, arch: Architecture, store: TeacherStore) -> Update:
    """Looked-up logits, length buckets, a fused optimiser."""
    student = student_module(arch, len(data.tokenizer))
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    train = data.split("train")

    def update(rows: torch.Tensor, width: int) -> None:
        tokens = train.batch(rows, width)
        logits = student(input_ids=data.vocabulary[tokens.ids], attention_mask=tokens.mask.long()).logits
        kd_loss(logits, store.logits[rows], train.labels[rows]).backward()
        optimiser.step()
        optimiser.zero_grad()

    return update


def ours(data: TaskData, arch: Architecture, store: TeacherStore, students: int) -> DistillationProcess:
    """This backend with the same two kinds of knowledge."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"word": len(data.tokenizer), "position": 512, "segment": 2}
    shared = {k: torch.randn(n, arch.hidden, generator=generator) * 0.05 for k, n in shapes.items()}
    init = StudentInit(arch, shared, data.vocabulary)
    recipe = Recipe(knowledge=("hard", "response"), horizon=1_000_000, batch=BATCH, learning_rate=1e-4, tau=TAU)
    process = DistillationProcess(data.split("train"), {"full": (store,)}, init, recipe, students)
    process.reset(list(range(students)), [Context()] * students)
    return process


def no_live(untuned: bool) -> NoReturn:
    """Nothing is asked of a live teacher here."""
    raise NotImplementedError


def env_overhead(family: Family, data: TaskData, store: TeacherStore, init: StudentInit, decisions: int) -> float:
    """What the env adds on top of training and evaluation, as a share of them: of the median decision with one."""
    lab = Lab(
        family.recipe,
        data,
        torch.device("cpu"),
        lambda spec, _: Teacher(spec, store, "random", data, None, lambda _: store, no_live),
        lambda _: init,
    )
    episodes = Episodes(family, lab, 1, EpisodeConfig(reward_every=family.reward_every))
    episodes.begin([0], [0])
    family.action_space.seed(0)
    shares = []
    for _ in range(decisions):
        spent = sum(episodes.process.cost.seconds.values())
        begin = time.perf_counter()
        episodes.step(family.decide([family.action_space.sample()], episodes))
        episodes.observe()
        episodes.info(0)
        inside = sum(episodes.process.cost.seconds.values()) - spent
        shares.append((time.perf_counter() - begin - inside) / inside)
    return float(np.median(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    data = load_data("SST2", "auto", embedded.minilm())
    arch = Architecture(
        args.layers, args.hidden, max(1, args.hidden // 32), 4 * args.hidden, len(data.vocabulary), data.classes
    )
    store = random_store(data)
    half = torch.full((1, 2), 0.5)
    one, four = ours(data, arch, store, 1), ours(data, arch, store, 4)
    by_hand = {"naive": naive(data, arch), "tuned": tuned(data, arch, store)}
    stream = one.lessons.streams[0]

    def run(name: str, first: int, count: int) -> float:
        """Milliseconds of an update of one student."""
        begin = time.perf_counter()
        if name in by_hand:
            for u in range(first, first + count):
                rows, width = stream.rows(u)
                by_hand[name](torch.from_numpy(rows), width)
            return (time.perf_counter() - begin) / count * 1e3
        process = one if name == "kd-gym" else four
        process.update[:] = first
        process.advance(Control(half.expand(process.students, -1)), count)
        return (time.perf_counter() - begin) / count / process.students * 1e3

    names = ["naive", "tuned", "kd-gym", "kd-gym, N = 4"]
    for name in names:
        run(name, 0, 6)
    times: dict[str, list[float]] = {name: [] for name in names}
    shuffle = random.Random(0)
    for repeat in range(args.repeats):
        for name in shuffle.sample(names, len(names)):
            few = max(5, args.updates // 4) if name == "naive" else args.updates  # its cost is the same every time
            times[name].append(run(name, 6 + repeat * args.updates, few))
    print(f"student {args.layers} x {args.hidden}, {data.source}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'contender':16s} {'ms/update':>10s} {'min':>8s} {'max':>8s}  kd-gym is faster by")
    ratios = {}
    for name in names:
        ratios[name] = float(np.median(np.array(times[name]) / np.array(times["kd-gym"])))
        spread = f"{min(times[name]):8.1f} {max(times[name]):8.1f}"
        print(f"{name:16s} {np.median(times[name]):10.1f} {spread}  {ratios[name]:.2f}")
    instance = TeacherWeight(Origin("SST2"), granularity="instance")
    instance.recipe = replace(instance.recipe, process=replace(instance.recipe.process, batch=BATCH))
    overhead = {
        "KnowledgeSelect, a decision of 10 updates": env_overhead(
            KnowledgeSelect(Origin("SST2")), data, store, one.init, 15
        ),
        f"TeacherWeight, a decision for each of {BATCH} samples and {instance.m} teachers": env_overhead(
            instance, data, store, one.init, 100
        ),
    }
    for what, share in overhead.items():
        print(f"the env adds {share:.1%} to training and evaluation ({what}, one student)")
    if args.out:
        machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        about = {"layers": args.layers, "hidden": args.hidden, "source": data.source, "machine": machine}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps({**about, "ms": times, "ratio": ratios, "env_overhead": overhead}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
