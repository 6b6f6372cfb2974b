"""What the repository's CI says to submissions, good and bad."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from kd_gym.experiments.evaluate import evaluate
from kd_gym.experiments.setup import EnvSpec

PLACE = Path(__file__).parents[1] / "benchmarks" / "leaderboard"


def script(name):
    spec = importlib.util.spec_from_file_location(name, PLACE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


check = script("check")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("entries") / "random"
    evaluate(["random"], EnvSpec("KnowledgeSelect-SST2", backend="tiny"), 5, records=folder / "records")
    (folder / "entry.yaml").write_text(yaml.safe_dump({"name": "random", "about": "a", "command": "c"}))
    return folder


@pytest.fixture
def entry(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "random"))


def change(file, place, value):
    told = json.loads(file.read_text())
    *path, last = place
    at = told
    for key in path:
        at = at[key]
    at[last] = value
    file.write_text(json.dumps(told))


def first(entry):
    return sorted((entry / "records").iterdir())[0]


def test_a_whole_entry_passes(entry):
    assert check.check(entry, 2, "auto", "tiny") == []


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("episode", "scores", "accuracy"), 0.99, "differs"),
        (("data_fingerprint",), "0" * 16, "not comparable"),
        (("controller",), "uniform", "more than one controller"),
        (("episode", "seed"), 7, "needs the seeds 0 to 4"),
        (("kwargs", "context"), "noise-40", "default context alone"),
        (("kwargs", "horizon"), 40, "not played as the id"),
        (("kwargs", "rows"), "train+reward", "not played as the id"),
        (("episode", "flops"), 1, "differs"),
        (("kwargs",), {}, "not played as the id"),
    ],
)
def test_a_bad_record_is_found_wherever_it_is(entry, place, value, words):
    for file in sorted((entry / "records").iterdir()):
        before = file.read_text()
        change(file, place, value)
        lines = check.check(entry, 2, "auto", "tiny")
        assert lines
        assert words in " ".join(lines)
        file.write_text(before)
    assert check.check(entry, 2, "auto", "tiny") == []


def test_the_tiny_backend_is_no_entry(entry):
    assert "not played as the id" in check.check(entry, 2, "auto")[0]


def test_an_entry_that_is_not_whole(entry):
    first(entry).unlink()
    assert "needs the seeds" in check.check(entry, 2, "auto", "tiny")[0]
    (entry / "entry.yaml").write_text("name: x")
    assert "should have name, about, command" in check.check(entry, 2, "auto", "tiny")[0]


def test_the_page_is_what_the_script_writes(tmp_path, monkeypatch):
    page = script("page")
    written = {}
    monkeypatch.setattr(page, "write_text", lambda path, text: written.update({path.name: text}))
    page.main()
    assert written["README.md"] == (PLACE / "README.md").read_text()
