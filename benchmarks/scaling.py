"""What Ray adds to a benchmark: the same trials by local processes and by Ray tasks, in turns, on two workers.

    python benchmarks/scaling.py [--rounds 3] [--updates 6000] [--out benchmarks/results/scaling.json]

Trials are tiny students with so many updates that each takes more than half a minute. Every round runs four trials on
each side, in folders of their own; workers are warm. Ray is a cluster of two nodes with one CPU each on this machine.
What an executor adds is the wall time beyond the trials' own: two after the other on each worker.
"""

import argparse
import dataclasses
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch
from ray.cluster_utils import Cluster

from kd_gym.experiments.benchmark import benchmark
from kd_gym.experiments.executors import Executor, Local, Ray
from kd_gym.experiments.suites import Stage, Suite
from kd_gym.files import write_json


def seconds(suite: Suite, run: Executor) -> tuple[float, float]:
    """Seconds of a whole benchmark, and of one trial in it."""
    with tempfile.TemporaryDirectory() as out:
        begin = time.perf_counter()
        found = benchmark(suite, Path(out), run, say=lambda line: None)
        spent = time.perf_counter() - begin
        return spent, float(np.mean([record.episode.seconds for record in found.records.values()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    args = parser.parse_args()
    stage = Stage(("KnowledgeSelect-SST2",), ("uniform",), budgets=(args.updates,))
    suite = Suite("what Ray adds", {"only": stage}, seeds=4, backend="tiny")
    warm = dataclasses.replace(suite, stages={"only": dataclasses.replace(stage, budgets=(20,))})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    sides: dict[str, Executor] = {"local": Local(2), "ray": Ray(2, cluster.address)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for run in sides.values():
        seconds(warm, run)
    for _ in range(args.rounds):
        for name, run in sides.items():
            found[name].append(seconds(suite, run))
            print(f"{name}: {found[name][-1][0]:.1f} s, one trial {found[name][-1][1]:.1f} s", flush=True)
    ratios = [a[0] / b[0] for a, b in zip(found["ray"], found["local"], strict=True)]
    beyond = {name: [(wall - 2 * trial) / 4 for wall, trial in spent] for name, spent in found.items()}
    report = {
        "rounds": {name: [{"seconds": a, "trial": b} for a, b in spent] for name, spent in found.items()},
        "ray over local, median": float(np.median(ratios)),
        "seconds beyond a trial, median": {name: float(np.median(spent)) for name, spent in beyond.items()},
        "trial seconds, median": float(np.median([b for spent in found.values() for _, b in spent])),
        "versions": {"ray": ray.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    print(f"ray over local: {report['ray over local, median']:.3f}, trials of {report['trial seconds, median']:.0f} s")
    write_json(args.out, report)
    for run in sides.values():
        run.close()
    cluster.shutdown()


if __name__ == "__main__":
    main()
