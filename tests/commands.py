"""What the tests of wrong input share."""

import os
import subprocess
import sys
from pathlib import Path

TINY = ("--backend", "tiny")
SST2 = ("--env", "KnowledgeSelect-SST2")


def written(cache: Path) -> list[Path]:
    """What a command left in the cache, whole or not, apart from the locks, which stay."""
    return [p for folder in cache.glob("*") for p in folder.iterdir() if p.suffix != ".lock"]


def refused(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own that says one line, exits with 2 and leaves nothing behind."""
    environment = {**os.environ, "KD_GYM_CACHE": str(tmp_path / "cache"), "KD_GYM_DATA": ""}
    done = subprocess.run(
        [sys.executable, "-m", "kd_gym", *arguments],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stdout
    assert not list((tmp_path / "work").iterdir())
    assert not written(tmp_path / "cache")
    return done
