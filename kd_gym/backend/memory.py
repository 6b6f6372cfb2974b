"""How much memory there is, and how much was needed."""

from pathlib import Path

import torch

from kd_gym.errors import KDGymError


def free_bytes(device: torch.device) -> int | None:
    """What can still be had on a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def forget_peak(device: torch.device) -> None:
    """Count the peak from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held on a device since `forget_peak`.

    Raises:
        KDGymError: a system that does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    found = _kilobytes(Path("/proc/self/status"), "VmHWM")
    if found is None:
        raise KDGymError("memory is measured on Linux and on CUDA devices only")
    return found


def _kilobytes(file: Path, name: str) -> int | None:
    """A line `name: 123 kB` of a file of the kernel's, in bytes."""
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
