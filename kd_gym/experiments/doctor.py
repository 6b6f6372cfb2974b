"""What this machine has, and how many students fit on it."""

import importlib.util
import os
from dataclasses import dataclass

import torch

from kd_gym.backend.memory import forget_peak, free_bytes, peak_bytes
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.state import Context
from kd_gym.backend.teacher import fast_bfloat16
from kd_gym.backend.terms import Control
from kd_gym.experiments.machine import this_machine
from kd_gym.experiments.setup import EnvSpec
from kd_gym.files import cache_dir

EXTRAS = {"onnxruntime": "onnx", "ray": "ray", "optuna": "tune"}
_SAMPLE = 9  # students that are tried beside one: enough to see the slope through the allocator's steps
_MARGIN = 0.9  # of what is free: others live here too


def facts_of_machine(device: torch.device) -> dict[str, str]:
    """Versions, hardware, folders and extras, by name."""
    machine, free = this_machine(device), free_bytes(device)
    return {
        "kd-gym": machine.kd_gym,
        "python": machine.python,
        "torch": machine.torch,
        "processor": f"{machine.cpu}, {machine.threads} threads",
        "device": machine.device,
        "free memory": "not told" if free is None else f"{free / 2**30:.1f} GB",
        "bfloat16": "fast" if fast_bfloat16(device) else "not faster than float32 here",
        "cache": str(cache_dir()),
        "data": os.environ.get("KD_GYM_DATA", "no folder given (KD_GYM_DATA): the hub, then the embedded corpus"),
        **{
            f"extra {extra}": "there" if importlib.util.find_spec(name) else f"pip install 'kd-gym[{extra}]'"
            for name, extra in EXTRAS.items()
        },
    }


@dataclass(frozen=True)
class Fit:
    """How many students fit, by what one and several of them took.

    Attributes:
        each: bytes of one more student: parameters, moments, and what an update over the longest batch holds.
        free: bytes that could be had before.
        largest: the most students that take no more than nine tenths of that.
    """

    each: int
    free: int
    largest: int


def fit(spec: EnvSpec) -> Fit:
    """Measure how many students of an id one device holds.

    Raises:
        KDGymError: an unknown id, or a system that does not tell how much memory is used.
    """
    lab = spec.lab()
    lab.process(1, ["full"])  # teachers and starts are there now
    peaks = {}
    for students in (1, _SAMPLE):
        forget_peak(lab.device)
        process = lab.process(students, ["full"])
        process.reset(range(students), [Context()] * students)
        _longest_update(process)
        peaks[students] = peak_bytes(lab.device)
        del process
    each = max(1, (peaks[_SAMPLE] - peaks[1]) // (_SAMPLE - 1))
    free = free_bytes(lab.device) or 0
    return Fit(each, free, int(_MARGIN * free) // each)


def _longest_update(process: DistillationProcess) -> None:
    """Two updates over the longest batch, since optimisers and allocators take what they need in the first."""
    buckets, kinds = process.lessons.buckets, len(process.knowledge)
    longest = buckets.width.index(max(buckets.width))
    update = next(u for u in range(process.recipe.horizon * 100) if buckets.visit(u)[0] == longest)
    control = Control(torch.full((process.students, kinds), 1 / kinds))
    for _ in range(2):
        process.update[:] = update
        process.advance(control, 1)
