"""One update of N students as one batch of kernels: updates a second and memory, against N single runs in turn.

    python benchmarks/speed/many.py [--students 1 2 4 8 16 32 64 128 256] [--repeats 5] [--updates 20] [--out FILE]

Each N alternates with N = 1 in one run: `times` is how many times the aggregate rate of one student it reaches, and
under 1 it would be better to train one student after the other. Memory is what the process of N students and a few of
its updates added to anonymous memory (on a GPU: to what torch has allocated at most).
"""

import gc
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch

from bench import (
    Contender,
    about,
    advancing,
    alternate,
    anonymous,
    architecture,
    device_of,
    make_process,
    parser,
    ratio,
    save,
    sst2,
)
from kd_gym.errors import KDGymError


def megabytes(device: torch.device) -> float:
    """What this process holds now: anonymous memory, or the most that torch has allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return anonymous()


def plot(file: Path, found: dict[int, dict[str, Any]]) -> None:
    """Aggregate rate, in that of one student in the same repeats, and memory over N."""
    matplotlib.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.plot(list(found), [row["times_one"] for row in found.values()], "o-", color="#0072b2")
    left.axhline(1, color="#999999", linestyle=":")
    left.set_ylabel("times the rate of one student")
    right.plot(list(found), [row["megabytes"] for row in found.values()], "o-", color="#d55e00")
    right.set_ylabel("megabytes")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("students")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(list(found), [str(n) for n in found])
    left.set_ylim(bottom=0)
    figure.savefig(file.with_suffix(".png"), dpi=110)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, 5, 20)
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--hidden", type=int, default=128)
    options.add_argument("--students", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    args = options.parse_args()
    device, data = device_of(args), sst2()
    arch = architecture(data, args.layers, args.hidden)
    single = Contender(advancing(make_process(data, arch, 1, device)))
    found: dict[int, dict[str, Any]] = {}
    told = {**about(device, data), "layers": args.layers, "hidden": args.hidden, "students": found}
    print(f"{'N':>4s} {'ms/update of one':>17s} {'updates/s':>10s} {'times N = 1':>12s} {'megabytes':>10s}")
    for n in args.students:
        gc.collect()
        before = megabytes(device)
        try:
            many = Contender(advancing(make_process(data, arch, n, device)), n)
            many.run(0, 3)
        except KDGymError as problem:
            print(f"{n:4d} {problem}")
            break
        held = megabytes(device) - before
        contenders = {"one": single, "many": many}
        times = alternate(contenders, args.repeats, args.updates, device, warm=2)
        middle = statistics.median(times["many"])
        found[n] = {
            "ms": times["many"],
            "ms_of_one": times["one"],
            "updates_per_second": 1e3 / middle,
            "times_one": ratio(times, "one", "many"),
            "megabytes": held,
        }
        print(f"{n:4d} {middle:17.2f} {1e3 / middle:10.1f} {found[n]['times_one']:12.2f} {held:10.0f}", flush=True)
        save(args.out, told)
        del many, contenders
    if args.out:
        plot(args.out, found)


if __name__ == "__main__":
    main()
