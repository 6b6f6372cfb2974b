import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kd_gym.files import build_once, cache_dir, digest, file_digest, text_digest, write_json, write_text

# a build in two steps, with a pause between them that ends when the file `go` stands beside the target
BUILDER = """
import sys, time
from pathlib import Path
from kd_gym.files import build_once

target = Path(sys.argv[1])

def build(folder):
    with (target.parent / "builds").open("a") as log:
        log.write("x")
    (folder / "first").write_text("1")
    end = time.monotonic() + 120  # if the test itself fails, nothing must stay
    while not (target.parent / "go").exists() and time.monotonic() < end:
        time.sleep(0.01)
    (folder / "second").write_text("2")

found = build_once(target, build)
print(sorted(p.name for p in found.iterdir()))
"""


def start(target: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(target)], stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.01)


def fill(folder: Path) -> None:
    (folder / "first").write_text("1")
    (folder / "second").write_text("2")


def test_a_build_killed_in_the_middle_leaves_nothing_that_looks_finished(tmp_path):
    target = tmp_path / "thing"
    process = start(target)
    wait_for(tmp_path / "thing.partial" / "first")
    assert not target.exists(), "unfinished, so not in its place"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()

    (tmp_path / "thing.partial" / "stray").write_text("left by the killed process")
    began = time.monotonic()
    assert build_once(target, fill) == target
    assert time.monotonic() - began < 10, "the killed process's lock is nobody's"
    assert sorted(p.name for p in target.iterdir()) == ["first", "second"]
    assert not (tmp_path / "thing.partial").exists()


def test_two_processes_that_build_at_once_build_once(tmp_path):
    target = tmp_path / "thing"
    first = start(target)
    wait_for(tmp_path / "thing.partial" / "first")
    second = start(target)
    time.sleep(1.0)  # long enough to reach the lock
    assert second.poll() is None, "the second waits for the first"
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=60)[0].strip() for process in (first, second)]
    assert said == ["['first', 'second']"] * 2
    assert (tmp_path / "builds").read_text() == "x"


def test_a_build_that_raises_is_tried_anew(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "first").write_text("1")
        raise RuntimeError("half-way")

    target = tmp_path / "deep" / "thing"
    with pytest.raises(RuntimeError, match="half-way"):
        build_once(target, fail)
    assert not target.exists()
    assert not target.with_name("thing.partial").exists()
    assert sorted(p.name for p in build_once(target, fill).iterdir()) == ["first", "second"]


def test_what_is_built_is_not_built_again(tmp_path):
    build_once(tmp_path / "thing", fill)
    build_once(tmp_path / "thing", lambda folder: pytest.fail("built twice"))


def test_a_reader_of_write_text_sees_the_old_text_or_the_new_one_whole(tmp_path):
    file = tmp_path / "text"
    whole = {letter * 2_000_000 for letter in "ab"}
    write_text(file, min(whole))
    over = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not over.is_set():
            seen.append(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for text in sorted(whole):
            write_text(file, text)
    over.set()
    reader.join()
    assert len(seen) > 5
    assert set(seen) <= whole
    assert [p.name for p in tmp_path.iterdir()] == ["text"], "no partial file stays"


def test_write_text_that_fails_leaves_the_old_text(tmp_path):
    write_text(tmp_path / "text", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "text", "a lone surrogate: \ud800")
    assert (tmp_path / "text").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_written_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_json(tmp_path / "a" / "made.json", {"b": 1, "a": [2]})
    assert (tmp_path / "a" / "made.json").read_text() == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'
    assert (tmp_path / "a" / "made.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_digests_tell_borders_order_and_types_apart():
    different = [digest("ab"), digest("a", "b"), digest("b", "a"), digest(["a", "b"]), digest(b"ab"), digest(1, "1")]
    assert len({*different, digest("1", 1)}) == len(different) + 1
    assert digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})
    assert text_digest(["ab", "c"]) != text_digest(["a", "bc"])
    assert len(digest("a")) == len(text_digest(["a"])) == 16


def test_file_digest_is_the_published_kind(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_GYM_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("KD_GYM_CACHE", "")
    assert cache_dir().name == "kd-gym"
