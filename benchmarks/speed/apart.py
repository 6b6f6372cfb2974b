"""Where the time of one update goes, and how near its matrix products come to what this machine can do.

    python benchmarks/speed/apart.py [--layers 2 --hidden 128] [--students 1 4] [--updates 100] [--out FILE]

The parts of an update are timed one after the other, in one thread pool (so a stack is not split over threads here):
rows and tokens, what teachers say, forward pass, control (the weights of the losses), losses, backward pass, table (the
rows' gradients added to the word table's), gradients (put into long tensors, and their norm), optimiser, bookkeeping
(what observations are told of the update, and its cost); in float32, and in bfloat16 where that is fast. The
matrix products of one update, forward and back, are then repeated alone, on the same shapes: that is the least that the
update could take, `products`. `peak` is the rate of a product of 1024 x 1024.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch

from bench import about, architecture, device_of, even, make_process, parser, save, sst2, synchronise
from kd_gym.backend.encoder import Architecture, Precision, add_rows, clear_rows, forward_flops, rows_norm
from kd_gym.backend.optim import adamw_step, gradient_norms
from kd_gym.backend.process import DistillationProcess, _trace
from kd_gym.backend.teacher import fast_bfloat16
from kd_gym.backend.terms import Forward


class Clock:
    """Adds up milliseconds by part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, list[float]] = defaultdict(list)
        self.last = 0.0

    def start(self) -> None:
        """Begin an update."""
        synchronise(self.device)
        self.last = time.perf_counter()

    def part(self, name: str) -> None:
        """All since the last call was this."""
        synchronise(self.device)
        now = time.perf_counter()
        self.spent[name].append((now - self.last) * 1e3)
        self.last = now


def take_apart(process: DistillationProcess, updates: int) -> dict[str, float]:
    """Median milliseconds of each part of an update of all students together, and of the whole."""
    clock, slots, control, recipe = Clock(process.device), range(process.students), even(process), process.recipe
    (everyone,) = process._parts(1)
    held = everyone.gradients
    for _ in range(updates):
        clock.start()
        rows, widths = process._rows(slots)
        labels, tokens = process.lessons.labels_of(slots, rows), process.train.batch(rows, max(widths))
        clock.part("rows and tokens")
        said = process.lessons.teach(slots, rows)
        clock.part("teachers")
        encoded = process.encode(process.params, tokens)
        clock.part("forward")
        weights = process.weights(control)
        clock.part("control")
        losses = process.losses(process.params, encoded, said, labels, process.progress)
        total = (weights * losses).sum((1, 2)).mean(-1).sum()
        clock.part("losses")
        wanted = process.params | {"word": encoded.word}
        found = torch.autograd.grad(total, list(wanted.values()), materialize_grads=True)
        gradients = dict(zip(wanted, found, strict=True))
        clock.part("backward")
        add_rows(held["word"], tokens.ids, gradients["word"])
        word = rows_norm(held["word"], tokens.ids, gradients["word"]).unsqueeze(1)
        clock.part("table")
        packed = process.layout.pack(gradients, held)
        norms = gradient_norms(packed | {"word": word})
        clock.part("gradients")
        rates = process.learning_rate()
        adamw_step(everyone.packed, packed, everyone.adam, rates, norms, recipe.clip, recipe.decay)
        clear_rows(held["word"], tokens.ids)
        clock.part("optimiser")
        flops = np.array([forward_flops(process.init.arch, rows.shape[-1], width) for width in widths])
        _trace(Forward(losses, encoded, said, labels, tokens.ids, flops), norms)
        process.cost.student += 3 * flops
        process.update += 1
        clock.part("bookkeeping")
    parts = {name: statistics.median(times) for name, times in clock.spent.items()}
    whole = [sum(row) for row in zip(*clock.spent.values(), strict=True)]
    return {**parts, "all parts": statistics.median(whole)}


def products(arch: Architecture, tokens: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Rows, input and output width of every matrix product of a forward pass, attention's small ones apart."""
    h, f = arch.hidden, arch.intermediate
    for layer in range(arch.layers):
        last = layer == arch.layers - 1  # which computes [CLS] alone, but for keys and values
        r = rows if last else tokens
        yield from ((tokens, h, 2 * h), (r, h, h), (r, h, h), (r, h, f), (r, f, h))


def timed(work: Callable[[], object], device: torch.device, repeats: int = 15) -> float:
    """Median milliseconds."""
    for _ in range(3):
        work()
    found = []
    for _ in range(repeats):
        synchronise(device)
        begin = time.perf_counter()
        work()
        synchronise(device)
        found.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(found)


def alone(arch: Architecture, students: int, tokens: int, rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """Milliseconds of the products of one update, forward and back, for all students together."""
    total = 0.0
    for r, i, o in products(arch, tokens, rows):
        x, w, g = (torch.randn(students, *s, device=device).to(dtype) for s in ((r, i), (i, o), (r, o)))
        for left, right in ((x, w), (g, w.mT), (x.mT, g)):
            total += timed(lambda left=left, right=right: torch.bmm(left, right), device)  # type: ignore[misc]
    return total


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of a product of 1024 x 1024."""
    square = torch.randn(1024, 1024, device=device).to(dtype)
    return 2 * 1024**3 / timed(lambda: square @ square, device) / 1e6


def main() -> None:
    options = parser(__doc__, 1, 100)
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--hidden", type=int, default=128)
    options.add_argument("--students", type=int, nargs="+", default=[1, 4])
    args = options.parse_args()
    device, data = device_of(args), sst2()
    arch = architecture(data, args.layers, args.hidden)
    kinds: tuple[Precision, ...] = ("float32", "bfloat16") if fast_bfloat16(device) else ("float32",)
    told = {**about(device, data), "layers": args.layers, "hidden": args.hidden, "students": {}}
    for n in args.students:
        parts = {}
        for precision in kinds:
            process = make_process(data, arch, n, device, precision=precision)
            take_apart(process, 10)
            parts[precision] = {name: value / n for name, value in take_apart(process, args.updates).items()}
        widths = [process.lessons.buckets.width[process.lessons.buckets.visit(u)[0]] for u in range(10, 110)]
        width = round(statistics.median(widths))
        batch = process.recipe.batch
        types = {precision: getattr(torch, precision) for precision in kinds}
        rates = {precision: peak(dtype, device) for precision, dtype in types.items()}
        least = {name: alone(arch, n, batch * width, batch, dtype, device) / n for name, dtype in types.items()}
        gflop = 3 * forward_flops(arch, batch, width) / 1e9
        told["students"][n] = {"ms": parts, "products": least, "peak": rates, "gflop": gflop, "width": width}
        print(f"N = {n}: milliseconds for one update of one student ({args.layers} x {args.hidden}, width {width})")
        for precision, ms in parts.items():
            print(f"  in {precision}")
            for name, value in ms.items():
                print(f"    {name:16s} {value:7.2f}  {value / ms['all parts']:6.1%}")
            value = least[precision]
            print(
                f"    products alone: {value:.2f} ms ({gflop / value * 1e3:.0f} of {rates[precision]:.0f} GFLOP/s at"
                f" 1024 x 1024), {value / ms['all parts']:.0%} of the update"
            )
        save(args.out, told)


if __name__ == "__main__":
    main()
