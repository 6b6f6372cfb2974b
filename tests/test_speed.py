"""The speed benchmarks run as they are, and tell what they found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[1] / "benchmarks" / "speed"
SHORT = {  # what makes a script short; one that is not named here runs with few repeats and updates alone
    "apart.py": ["--students", "1"],
    "many.py": ["--students", "1", "2"],
    "store.py": ["--rows", "256"],
    "envs.py": ["--envs", "2", "--backend", "tiny"],
}
SCRIPTS = sorted(file.name for file in PLACE.glob("*.py") if "\ndef main(" in file.read_text())


def run(script, *options):
    return subprocess.run(
        [sys.executable, str(PLACE / script), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=900,
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "guard.py"])
def test_a_benchmark_runs_and_writes_what_it_prints(script, tmp_path):
    out = tmp_path / "found.json"
    done = run(script, "--repeats", "1", "--updates", "2", *SHORT.get(script, []), "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(out.read_text())
    assert {"cpu", "threads", "torch", "device"} <= told.keys()
    assert len(done.stdout.splitlines()) > 2


@pytest.mark.slow
def test_the_guard_holds():
    done = run("guard.py")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "guard.py"])
def test_a_device_that_is_not_there_is_a_line(script):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one here")
    done = run(script, "--device", "cuda")
    assert done.returncode != 0
    assert "no CUDA device here" in done.stderr
    assert "Traceback" not in done.stderr
