"""Counts that do not depend on the machine, held to fixed bounds: a slower backend shows here without a clock.

    python benchmarks/speed/guard.py

Bounds are what was counted when they were written, and a little more where rounding can move it (a gradient is clipped
or is not). Who makes the backend better lowers them; who has to raise one says why in the commit. The student is the
default one (2 x 128, batch 32) on generated sentences whose lengths are spread like SST-2's.
"""

import sys
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import even
from kd_gym.backend.checkpoint import StudentInit
from kd_gym.backend.encoder import Architecture
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.state import Context
from kd_gym.backend.store import TeacherStore
from kd_gym.backend.terms import Control, Recipe
from kd_gym.experiments.setup import EnvSpec, agent_for
from kd_gym.tasks.batches import Buckets, RowStream
from kd_gym.tasks.tokens import TokenSplit

BOUNDS = {
    "operators of an update, N = 1": 640,
    "operators of an update, N = 16": 1085,
    "megabytes allocated by an update, N = 1": 21.5,
    "megabytes allocated by an update of one of 16": 21.5,
    "waits for the device in an update, N = 1": 2,
    "different counts of operators under 100 controls": 2,  # a gradient is clipped, or it is not
    "compilations under 100 controls": 0,
    "padded over used tokens": 0.056,
    "teacher passes of an LGTM update": 2,
}
ROWS, PIECES = 4000, 11_000
WAITS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero")


class Count(TorchDispatchMode):
    """Counts operators, and the bytes of memory that they allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators[func.name().partition(".")[0]] += 1
        given = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            if tensor.untyped_storage().data_ptr() not in given:
                self.bytes += tensor.untyped_storage().nbytes()
        return out


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def sentences() -> TokenSplit:
    """Random word pieces in rows as long as SST-2's: 3 to 66, half of them shorter than 11."""
    random = np.random.default_rng(0)
    length = torch.from_numpy(np.clip(np.round(random.lognormal(2.4, 0.6, ROWS)), 3, 66).astype(np.int64))
    pieces = torch.from_numpy(random.zipf(1.3, int(length.sum())) % PIECES)
    start = torch.cat((torch.zeros(1, dtype=torch.long), length.cumsum(0)[:-1]))
    return TokenSplit(pieces, start, length, length, torch.from_numpy(random.integers(0, 2, ROWS)))


def make_process(train: TokenSplit, students: int) -> DistillationProcess:
    """Default students before their first update."""
    arch = Architecture(2, 128, 4, 512, PIECES, 2)
    generator = torch.Generator().manual_seed(0)
    shapes = {"word": PIECES, "position": 512, "segment": 2}
    shared = {k: torch.randn(n, arch.hidden, generator=generator) * 0.05 for k, n in shapes.items()}
    store = TeacherStore(torch.randn(ROWS, 2, generator=generator), torch.zeros(ROWS, 6, 384), {})
    init = StudentInit(arch, shared, torch.arange(PIECES))
    process = DistillationProcess(train, {"full": (store,)}, init, Recipe(batch=32), students)
    process.reset(range(students), [Context()] * students)
    return process


def counted(process: DistillationProcess, weights: torch.Tensor) -> Count:
    """What one update launches and allocates: always the same one, after one that nobody counts."""
    control = Control(weights.expand(process.students, -1))
    process.advance(control, 1)
    process.update[:] = 7
    with Count() as count:
        process.advance(control, 1)
    return count


def under_controls(process: DistillationProcess, controls: int) -> tuple[int, int]:
    """Different counts of operators, and compilations, under so many random controls."""
    counters.clear()
    random = torch.Generator().manual_seed(0)
    seen = {
        counted(process, torch.softmax(torch.randn(1, 4, generator=random) * 2, -1)).operators.total()
        for _ in range(controls)
    }
    return len(seen), counters["stats"]["unique_graphs"]


def padding(train: TokenSplit, updates: int = 1000) -> float:
    """Tokens that fill up batches, over tokens of text."""
    stream = RowStream(Buckets(train.length, 32, 0), seed=0, share=1.0)
    used = padded = 0
    for update in range(updates):
        rows, width = stream.rows(update)
        text = int(train.length[rows].sum())
        used += text
        padded += width * len(rows) - text
    return padded / used


def lgtm_passes() -> int:
    """How often an update of LGTM runs the teacher."""
    passes, call = 0, LiveTeacher.__call__

    def noted(self: LiveTeacher, *args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        return call(self, *args, **kwargs)

    cls, argument, spec = agent_for("lgtm", EnvSpec("KnowledgeSelect-SST2", backend="tiny"))
    env = spec.make()
    controller = cls(env, argument=argument) if argument else cls(env)
    env.reset(seed=0)
    controller.begin(env)
    process = env.episodes.process
    LiveTeacher.__call__ = noted  # type: ignore[method-assign]
    try:
        process.advance(even(process), 4)
    finally:
        LiveTeacher.__call__ = call  # type: ignore[method-assign]
    return passes // 4


def measure() -> dict[str, float]:
    """All counts."""
    torch.set_num_threads(1)  # a stack is then trained in one piece
    train, equal = sentences(), torch.full((1, 4), 0.25)
    one, many = make_process(train, 1), make_process(train, 16)
    single, sixteen = counted(one, equal), counted(many, equal)
    different, compilations = under_controls(one, 100)
    return {
        "operators of an update, N = 1": single.operators.total(),
        "operators of an update, N = 16": sixteen.operators.total(),
        "megabytes allocated by an update, N = 1": single.bytes / 2**20,
        "megabytes allocated by an update of one of 16": sixteen.bytes / 2**20 / 16,
        "waits for the device in an update, N = 1": sum(single.operators[name] for name in WAITS),
        "different counts of operators under 100 controls": different,
        "compilations under 100 controls": compilations,
        "padded over used tokens": padding(train),
        "teacher passes of an LGTM update": lgtm_passes(),
    }


def main() -> None:
    found = measure()
    for name, value in found.items():
        word = "" if value <= BOUNDS[name] else "  TOO MANY"
        print(f"{name:50s} {value:10.4g}  at most {BOUNDS[name]:.4g}{word}")
    sys.exit(any(value > BOUNDS[name] for name, value in found.items()))


if __name__ == "__main__":
    main()
