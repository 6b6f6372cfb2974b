"""Options and folders that do not do are one line, and leave nothing behind."""

import pytest

from commands import SST2, TINY
from kd_gym.cli import main

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--steps", "-5"), "at least 1"),
        (("--steps", "0"), "at least 1"),
        (("--num-envs", "0"), "at least 1"),
        (("--seed", "-1"), "the seed must lie between 0 and"),
        (("--steps", "5", "--eval-seeds", "0"), "at least"),
        (("--env-config.reward-every", "0"), "reward_every must be at least 1"),
        (("--agent", "dqn", "--env-config.action", "weights"), "takes no 'weights' actions"),
        (("--resume", "somewhere"), "takes no other option"),
        (("--resume=somewhere", "--seed=3"), "takes no other option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_out_of_range_is_a_line(complaint, options, said):
    agent = () if "--agent" in options else ("--agent", "ppo")
    assert said in complaint("train", *SST2, *TINY, *agent, *options)


def test_resume_alone_with_another_option_is_a_line(complaint):
    assert "takes no other option" in complaint("train", "--resume=somewhere", "--seed=3")


@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_no_seed_to_evaluate_is_a_line(complaint, seeds):
    assert "at least one seed" in complaint("evaluate", *SST2, *TINY, "uniform", "--seeds", seeds)


@pytest.mark.parametrize(
    "options", [("--env",), ("--agent",), ("--resume",), ("--steps", "many"), ("--devise", "cpu"), ("--device", "gpu")]
)
def test_an_option_that_cannot_be_parsed_exits_with_2_and_writes_nothing(capsys, tmp_path, options):
    with pytest.raises(SystemExit) as exit_:
        main(["train", *SST2, "--agent", "ppo", *TINY, *options])
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert options[0] in said.err
    assert not list((tmp_path / "work").iterdir())


def test_an_out_folder_that_holds_something_is_refused_and_left_as_it_is(capsys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit) as exit_:
        main(["train", *SST2, "--agent", "ppo", *TINY, "--steps", "5", "--out", str(out)])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{out} is not empty; give another --out, or go on with: kd-gym train --resume {out}" in line
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


def test_an_out_that_is_a_file_is_refused(complaint, tmp_path):
    (tmp_path / "out").write_text("a file")
    said = complaint("train", *SST2, "--agent", "ppo", *TINY, "--steps", "5", "--out", tmp_path / "out")
    assert str(tmp_path / "out") in said
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no run directory: it has no config.yaml"),
        ("", "is not of this version"),
        ("env: KnowledgeSelect-SST2-v0\n", "is not of this version"),
        ("- a\n- b\n", "is not of this version"),
        ("{: broken\n", "config.yaml"),
    ],
)
def test_what_is_no_run_cannot_be_resumed_or_evaluated(complaint, tmp_path, content, said):
    run = tmp_path / "run"
    assert "no run directory" in complaint("train", "--resume", run)
    run.mkdir()
    if content is not None:
        (run / "config.yaml").write_text(content)
    assert said in complaint("train", "--resume", run)
    assert said in complaint("evaluate", *SST2, *TINY, run)
    assert len(list(run.iterdir())) == (content is not None)
