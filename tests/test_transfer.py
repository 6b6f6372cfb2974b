"""Policies where they were not trained."""

import json

import pytest

from kd_gym.cli import main
from kd_gym.errors import KDGymError
from kd_gym.experiments.evaluate import evaluate
from kd_gym.experiments.report import report
from kd_gym.experiments.setup import EnvSpec
from kd_gym.experiments.stats import paired
from kd_gym.experiments.train import train
from kd_gym.experiments.transfer import default_targets, target_spec, transfer

BASE = EnvSpec("KnowledgeSelect-SST2", backend="tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train("KnowledgeSelect-SST2", "ppo", steps=20, num_envs=2, backend="tiny", out=folder, eval_seeds=1)
    return folder


def test_a_cell_is_the_paired_difference_to_uniform(run):
    found = transfer([str(run)], BASE, ["KnowledgeSelect-MRPC:context=noise-40", "KnowledgeSelect-SST2:horizon=30"], 2)
    other = evaluate(
        ["uniform", str(run)], EnvSpec("KnowledgeSelect-MRPC", backend="tiny", config={"context": "noise-40"}), 2
    )
    mine, base = (row.scores("f1") for row in reversed(other.rows))
    cell, longer = found.cells[str(run)]
    assert (cell.metric, cell.gain, cell.half) == ("f1", paired(mine, base).mean, paired(mine, base).half)
    assert longer.metric == "accuracy"
    told = json.loads((run / "transfer.json").read_text())
    assert told["cells"][0]["gain"] == cell.gain


def test_a_policy_that_does_not_fit_leaves_a_gap_and_a_reason(run):
    found = transfer([str(run)], BASE, ["KnowledgeSelect-SST2:action=multi", "TeacherWeight-SST2"], 1)
    assert found.cells[str(run)] == [None, None]
    assert "spaces differ" in found.misfits[0]
    assert "cannot control" in found.misfits[1]


def test_targets_are_checked_before_anything_is_played(run):
    assert target_spec("KnowledgeSelect-SST2:context=held-out,horizon=40", BASE).config == {
        "context": "held-out",
        "horizon": 40,
    }
    for target, words in (("KnowledgeSelect-SST3", "did you mean"), ("KnowledgeSelect-SST2:contex=x", "'context'")):
        with pytest.raises(KDGymError, match=words):
            transfer([str(run)], BASE, [target])
    with pytest.raises(KDGymError, match="no run directory"):
        transfer(["uniform"], BASE, [])
    assert len(default_targets(BASE)) == 4


def test_the_command_and_the_report_show_the_matrix(run, tmp_path, capsys):
    words = ["evaluate", str(run), "--env", "KnowledgeSelect-SST2", "--backend", "tiny", "--seeds", "2", "--transfer"]
    with pytest.raises(SystemExit) as left:
        main(words)
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert all(target in said for target in default_targets(BASE))
    assert "Transfer" in report(run, tmp_path).read_text()
    assert (tmp_path / "transfer.png").exists()
