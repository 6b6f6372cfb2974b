"""The report is one page that needs nothing else, looked at in a real browser, and its figures say what records say."""

import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest
import yaml

from conftest import Here
from kd_gym.analysis import figures
from kd_gym.analysis.figures import Difference, Point, drawn, score_against_cost
from kd_gym.cli import main
from kd_gym.errors import KDGymError
from kd_gym.experiments.benchmark import benchmark
from kd_gym.experiments.report import report
from kd_gym.experiments.suites import load_suite
from kd_gym.experiments.train import train

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train("KnowledgeSelect-SST2", "ppo", steps=40, num_envs=2, backend="tiny", out=folder, eval_seeds=2)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    stage = {"ids": ["KnowledgeSelect-SST2", "TeacherWeight-SST2"], "controllers": ["uniform", "random", "ppo"]}
    told = {"about": "for tests", "backend": "tiny", "seeds": 2, "stages": {"a": stage}, "training": {"episodes": 2}}
    told["claims"] = [{"text": "It is so", "family": "KnowledgeSelect", "method": "random", "others": ["uniform"]}]
    (folder / "own.yaml").write_text(yaml.safe_dump(told))
    benchmark(load_suite(str(folder / "own.yaml")), folder / "out", Here(), say=str)
    return folder / "out"


@pytest.fixture(params=["run", "results"])
def place(request):
    return request.getfixturevalue(request.param)


def test_the_page_needs_nothing_else(place, tmp_path):
    page = report(place, tmp_path)
    text = page.read_text()
    assert not re.findall(r'(?:src|href|srcset)="(?!#|data:)', text)
    assert "<script" not in text
    pictures = sorted(file.stem for file in tmp_path.glob("*.png"))
    assert len(pictures) == text.count("<figure>") >= 5
    for file in tmp_path.glob("*.png"):
        assert np.ptp(matplotlib.image.imread(file)[..., :3]) > 0.5  # something is drawn
    assert text.count("prefers-color-scheme: dark") == len(pictures) + 1
    assert all(alt.strip() for alt in re.findall(r'alt="([^"]*)"', text))


def test_the_same_records_give_the_same_page(place, tmp_path):
    assert report(place, tmp_path / "a").read_text() == report(place, tmp_path / "b").read_text()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here to look at the page with")
@pytest.mark.parametrize("width", [1280, 700])
def test_the_page_in_a_browser_light_and_dark(place, tmp_path, width):
    page, shots = report(place, tmp_path), {}
    for theme, setting in (("light", 1), ("dark", 0)):
        file = tmp_path / f"{theme}.shot.png"
        subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={tmp_path}/browser", f"--window-size={width},2400",
             f"--blink-settings=preferredColorScheme={setting}",
             f"--screenshot={file}", page.as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        shots[theme] = matplotlib.image.imread(file)[..., :3]
    light, dark = shots["light"], shots["dark"]
    assert light.shape == (2400, width, 3)
    assert light[5, 5].min() > 0.95  # the ground of each theme
    assert dark[5, 5].max() < 0.1
    for shot, ground in ((light, light[5, 5]), (dark, dark[5, 5])):
        inked = (np.abs(shot - ground).max(-1) > 0.3).mean()
        assert 0.01 < inked < 0.3  # text and figures, and mostly ground
    coloured = (np.ptp(light, axis=-1) > 0.3).any(1)
    assert coloured.sum() > 100  # figures were shown, not their texts alone


def test_what_is_no_run_and_no_benchmark(tmp_path, capsys):
    with pytest.raises(KDGymError, match="neither a run"):
        report(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["report", str(tmp_path / "nowhere")])
    assert left.value.code == 2
    assert "neither a run" in capsys.readouterr().err


def test_names_beside_points_never_lie_above_another():
    points = [Point(f"c{i}", 1.0 + i, 0.8 + 0.0001 * i, 0.01, i % 2 == 0) for i in range(18)]
    axes = drawn(lambda: score_against_cost(points, "accuracy"), "light").axes[0]
    places = sorted(text.xyann[1] for text in axes.texts)
    assert len(places) == 18
    assert min(np.diff(places)) > 0.04
    assert places[0] >= 0
    assert places[-1] <= 1.0001


def test_a_difference_beyond_chance_is_filled():
    rows = [Difference("sure", 0.5, 0.1), Difference("unsure", 0.1, 0.5), Difference("alone", 0.5, float("nan"))]
    axes = drawn(lambda: figures.differences(rows, "x"), "light").axes[0]
    faces = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"]
    assert [face == "#ffffff" for face in faces] == [True, True, False]  # from below
