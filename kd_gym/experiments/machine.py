"""Where and with what an episode is played."""

import functools
import inspect
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

import kd_gym
from kd_gym.backend.process import DistillationProcess
from kd_gym.files import digest, file_digest


@dataclass(frozen=True)
class Machine:
    """Versions, a hash of the backend's code, and hardware: bits are promised between equal ones."""

    kd_gym: str
    torch: str
    python: str
    code: str
    cpu: str
    device: str
    threads: int


@functools.cache
def cpu_name() -> str:
    """The processor's model name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def backend_digest() -> str:
    """A hash of the code that trains students."""
    files = sorted(Path(inspect.getfile(DistillationProcess)).parent.glob("*.py"))
    return digest([file_digest(file) for file in files])


def this_machine(device: torch.device) -> Machine:
    """This process, with students on this device."""
    return Machine(
        kd_gym=kd_gym.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        code=backend_digest(),
        cpu=cpu_name(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
    )
