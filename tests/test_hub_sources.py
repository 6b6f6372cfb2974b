"""Tasks from the model hub, which a stand-in plays."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from given import Table, embedded_or_skip, made_table, rows_of, write
from kd_gym.errors import KDGymError
from kd_gym.tasks import embedded
from kd_gym.tasks.readers import Rows
from kd_gym.tasks.sources import EMBEDDED_TASKS, load_source
from kd_gym.tasks.task import TASKS


class _Session:
    """What answers when the client asks whether the hub is there."""

    def __init__(self, status: int | None) -> None:
        self.status_code = status

    def head(self, url: str, timeout: float) -> "_Session":
        assert timeout <= 5
        if self.status_code is None:
            raise ConnectionError("no network")
        return self


def hub_answers(monkeypatch, status: int | None) -> None:
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: _Session(status))


class _Split:
    def __init__(self, table: Table) -> None:
        self.table = table

    def to_dict(self) -> Table:
        return self.table


@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_from_the_hub_has_its_published_splits(monkeypatch, name):
    """The client is a stand-in: only its answer is under test."""
    hub_answers(monkeypatch, 200)
    task = TASKS.get(name)
    numbers = tuple(range(len(task.labels)))
    train, validation = made_table(task.text, numbers), made_table(task.text, numbers, 9, "v")
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return {"train": _Split(train), task.validation: _Split(validation), "test": _Split({})}

    monkeypatch.setenv("KD_GYM_DATA", "")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for data in ("hub", "auto"):
        found = load_source(name, data)
        assert found.train == rows_of(train, task.text, numbers)
        assert found.validation == rows_of(validation, task.text, numbers)
        assert found.name == f"hub:{task.hub[0]}"
    assert asked == [task.hub] * 2


def test_the_installed_client_gives_tables_of_the_form_that_is_read(tmp_path, monkeypatch):
    """The real client on local files, behind the hub's name."""
    hub_answers(monkeypatch, 200)
    train, validation = made_table(("sentence",)), made_table(("sentence",), count=9, tag="v")
    files = {
        "train": str(write(tmp_path / "t.parquet", train)),
        "validation": str(write(tmp_path / "v.parquet", validation)),
    }
    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_: real("parquet", data_files=files, cache_dir=str(tmp_path / "hf"))
    )
    found = load_source("SST2", "hub")
    assert found.train == rows_of(train, ("sentence",), (0, 1))
    assert found.validation == rows_of(validation, ("sentence",), (0, 1))


@pytest.mark.parametrize(("status", "offline"), [(200, False), (404, False), (503, True), (None, True)])
def test_the_hubs_cache_alone_is_asked_when_the_hub_does_not_answer(monkeypatch, status, offline):
    table = made_table(("sentence",))
    flags = []

    def load_dataset(*_):
        flags.extend([datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE])
        return {"train": _Split(table), "validation": _Split(table)}

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub_answers(monkeypatch, status)
    load_source("SST2", "hub")
    assert flags == [offline, offline]
    assert not datasets.config.HF_HUB_OFFLINE, "set for that one call"
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def unreachable(tmp_path: Path, **more: str) -> dict[str, str]:
    """An environment in which nothing listens where the hub should be, and no cache has its data."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KD_GYM_")) and "proxy" not in k.lower()}
    own = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "KD_GYM_CACHE": str(tmp_path / "kd")}
    return {**kept, **own, **more}


def test_a_hub_that_cannot_be_reached_is_named_within_seconds_with_the_alternatives(tmp_path):
    program = (
        "import time, sys\n"
        "from kd_gym.errors import KDGymError\n"
        "from kd_gym.tasks.sources import load_source\n"
        "import datasets\n"
        "began = time.perf_counter()\n"
        "try:\n"
        "    load_source(sys.argv[1], sys.argv[2])\n"
        "except KDGymError as error:\n"
        "    print(error)\n"
        "print(time.perf_counter() - began)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "RTE", "hub"],
        env=unreachable(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    said, seconds = done.stdout.strip().split("\n")
    assert "the hub did not give nyu-mll/glue" in said
    for alternative in ("--data embedded", "--data PATH", "KD_GYM_DATA"):
        assert alternative in said
    assert "Retrying" not in done.stderr
    assert float(seconds) < 20  # two on an idle machine; the client's own retries sleep for 23


@pytest.mark.slow
def test_the_command_line_says_that_the_hub_cannot_be_reached(tmp_path):
    embedded_or_skip(embedded.minilm)
    done = subprocess.run(
        [sys.executable, "-m", "kd_gym", "prepare", "--env", "KnowledgeSelect-SST2", "--data", "hub"],
        env=unreachable(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "the hub did not give nyu-mll/glue" in done.stderr
    assert "--data embedded" in done.stderr
    assert not [p for p in (tmp_path / "kd").rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", TASKS.names())
def test_auto_falls_back_to_the_embedded_corpus_only_where_it_fits(monkeypatch, name):
    def refuse(*_):
        raise ConnectionError("no network\nand more lines")

    reviews = Rows([(f"text {i}",) for i in range(60)], [i % 2 for i in range(60)])
    monkeypatch.setenv("KD_GYM_DATA", "")
    hub_answers(monkeypatch, None)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(embedded, "reviews", lambda: reviews)
    if name in EMBEDDED_TASKS:
        found = load_source(name)
        assert found.name.startswith("embedded:")
        assert found.train == reviews
        assert ("NOT SST-2" in found.notice) == (name == "SST2")
    else:
        with pytest.raises(KDGymError, match=r"^the hub did not give .*\(no network\); use --data embedded"):
            load_source(name)
        with pytest.raises(KDGymError, match=f"{name} has no embedded data"):
            load_source(name, "embedded")
