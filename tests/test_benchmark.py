"""Suites, their trials and their tables: real processes, killed and resumed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import Here
from kd_gym.cli import main
from kd_gym.errors import KDGymError
from kd_gym.experiments.benchmark import benchmark, locked, read_results, record_file
from kd_gym.experiments.executors import Local, WorkerDiedError
from kd_gym.experiments.publish import write_tables
from kd_gym.experiments.records import Record
from kd_gym.experiments.stats import interval
from kd_gym.experiments.suites import SUITES, load_suite, suite_names, trials_of
from kd_gym.experiments.summary import tables_of

SMALL = {
    "about": "for tests",
    "backend": "tiny",
    "seeds": 2,
    "stages": {"plain": {"ids": ["KnowledgeSelect-SST2"], "controllers": ["uniform", "single:hard"]}},
}


@pytest.fixture
def suite(tmp_path):
    """A suite out of settings, by way of its file."""

    def make(**changes):
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump({**SMALL, **changes}))
        return load_suite(str(file))

    return make


def quiet(line):
    """Say nothing."""


def table_without_seconds(folder):
    text = (folder / "table.md").read_text()
    return re.sub(r"[\d.]+ \|$", "|", text, flags=re.M)  # the last column


# ---------------------------------------------------------------------- suites


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_is_valid_and_says_what_it_is(name):
    found = load_suite(name)
    assert found.about
    for stage in found.stages:
        assert len(set(trials_of(found, stage))) > 0
    keys = [trial.key for stage in found.stages for trial in set(trials_of(found, stage))]
    assert len(set(keys)) == len({t for stage in found.stages for t in trials_of(found, stage)})


def test_suites_are_found_where_kd_gym_is_installed():
    assert {"smoke", "mini"} <= set(suite_names())
    assert (SUITES / "smoke.yaml").is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": {"a": {"ids": ["KnowledgeSelect-SST3"], "controllers": ["uniform"]}}}, "KnowledgeSelect-SST2"),
        ({"stages": {"a": {"ids": ["KnowledgeSelect-SST2"], "controllers": ["unifrom"]}}}, "did you mean 'uniform'"),
        ({"stages": {"a": {"id": ["KnowledgeSelect-SST2"], "controllers": ["uniform"]}}}, "did you mean 'ids'"),
        ({"stages": {"a": {"ids": ["KnowledgeSelect-SST2"]}}}, "'controllers' is missing"),
        ({"stages": {"a": {**SMALL["stages"]["plain"], "contexts": ["noise-41"]}}}, "did you mean 'noise-4"),
        ({"stages": {"a": {**SMALL["stages"]["plain"], "budgets": ["cost of lgtm", "own"]}}}, "budgets"),
        ({"stages": {"a": {**SMALL["stages"]["plain"], "budgets": ["cost of uniform"]}}}, "beside `own`"),
        ({"stages": {"a": {**SMALL["stages"]["plain"], "budgets": [0]}}}, "no number of updates"),
        ({"stages": {}}, "mapping"),
        ({"seeds": "five"}, "seeds should be int"),
        (
            {"stages": {"a": {"ids": ["KnowledgeSelect-SST2"], "controllers": ["uniform", "lgtm"]}}},
            "add uniform+reward",
        ),
        ({"seeds": 0}, "at least one seed"),
        ({"sed": 3}, "did you mean 'seeds'"),
        ({"baseline": "unifrm"}, "did you mean 'uniform'"),
        ({"backend": "small"}, "backend should be"),
        ({"claims": [{"text": "t", "family": "KnowledgeSelct", "method": "uniform", "others": []}]}, "KnowledgeSelect"),
        ({"claims": [{"text": "t", "family": "KnowledgeSelect", "method": "lgtm", "others": []}]}, "claims"),
        ({"training": {"context": "trian"}}, "did you mean 'train'"),
        ({"training": {"episodes": 0}}, "episodes must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_a_wrong_suite_is_named_before_any_trial(suite, changes, words):
    with pytest.raises(KDGymError, match=re.escape(words)):
        suite(**changes)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_what_is_no_suite(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(KDGymError, match=r"s\.yaml"):
        load_suite(str(tmp_path / "s.yaml"))


def test_an_unknown_suite_is_answered_with_the_nearest():
    with pytest.raises(KDGymError, match="did you mean 'smoke'"):
        load_suite("smok")
    with pytest.raises(KDGymError, match="no suite file"):
        load_suite("none.yaml")


# ---------------------------------------------------------------------- running


def test_finished_trials_are_never_run_again(suite, tmp_path):
    own, first, second = suite(), Here(), Here()
    found = benchmark(own, tmp_path / "out", first, say=quiet)
    assert len(found.records) == 4
    assert sum(name == "trial_job" for name, _ in first.jobs) == 4
    benchmark(own, tmp_path / "out", second, say=quiet)
    assert second.jobs == []
    more = suite(seeds=3)
    benchmark(more, tmp_path / "out", second, say=quiet)
    assert sum(name == "trial_job" for name, _ in second.jobs) == 2


def test_a_damaged_record_is_named_and_run_again(suite, tmp_path):
    own, out, lines = suite(), tmp_path / "out", []
    found = benchmark(own, out, Here(), say=quiet)
    first, second = list(found.records)[:2]
    record_file(out, first).write_text('{"format": 1, "env"')
    record_file(out, second).write_text(json.dumps({"format": 99}))
    assert len(read_results(out, own).damaged) == 2
    again = Here()
    found = benchmark(own, out, again, say=lines.append)
    assert sum(name == "trial_job" for name, _ in again.jobs) == 2
    assert len(found.records) == 4
    assert sum("damaged" in line or "no record of this version" in line for line in lines) == 2


@pytest.mark.parametrize("changes", [{"threads": 2}, {"training": {"episodes": 9}}, {"data": "embedded"}])
def test_results_of_other_settings_are_not_gone_on_with(suite, tmp_path, changes):
    benchmark(suite(), tmp_path / "out", Here(), say=quiet)
    with pytest.raises(KDGymError, match=f"was begun with {next(iter(changes))}"):
        benchmark(suite(**changes), tmp_path / "out", Here(), say=quiet)


def test_failures_of_another_stage_are_kept(suite, tmp_path):
    class Failing(Here):
        def __call__(self, function, *args):
            if function.__name__ == "trial_job" and args[1].controller == "single:hard":
                raise ValueError("two\nlines | and a bar")
            return super().__call__(function, *args)

    stages = {
        name: {**SMALL["stages"]["plain"], "controllers": [name, "uniform"]} for name in ("single:hard", "random")
    }
    own, out = suite(stages=stages), tmp_path / "out"
    benchmark(own, out, Failing(), ("single:hard",), quiet)
    found = benchmark(own, out, Here(), ("random",), quiet)
    assert len(found.failures) == 2
    write_tables(found)
    assert "failed: ValueError: two lines / and a bar |" in (out / "table.md").read_text()
    (out / "failures.json").write_text("{")
    assert benchmark(own, out, Here(), say=quiet).failures == {}


def test_what_costs_as_much_as_a_trained_agent_is_run_too(suite, tmp_path):
    stage = {"ids": ["KnowledgeSelect-SST2"], "controllers": ["uniform", "ppo"], "budgets": ["own", "cost of ppo"]}
    found = benchmark(
        suite(stages={"a": stage}, seeds=2, training={"episodes": 2, "agents": 2}), tmp_path / "out", Here(), say=quiet
    )
    assert found.failures == {}
    assert len(found.records) == 6
    (table, _) = tables_of(found)
    assert table.row("ppo").policies == 2  # evaluation seeds take the trained agents in turn
    assert table.row("ppo").name == "ppo (2 trainings)"


def test_an_interruption_does_not_begin_a_job_again():
    run, begun = Local(1), time.monotonic()
    threading.Timer(4, run.close).start()
    with pytest.raises(WorkerDiedError, match="was ended"):
        run(time.sleep, 60)
    assert time.monotonic() - begun < 30


def test_a_trial_that_fails_is_reported_and_the_rest_is_kept(suite, tmp_path, monkeypatch):
    own = suite()

    class Failing(Here):
        def __call__(self, function, *args):
            if function.__name__ == "trial_job" and args[1].controller == "single:hard":
                raise WorkerDiedError("its worker died 3 times")
            return super().__call__(function, *args)

    found = benchmark(own, tmp_path / "out", Failing(), say=quiet)
    assert len(found.records) == 2
    assert len(found.failures) == 2
    write_tables(found)
    assert "failed: WorkerDiedError: its worker died 3 times" in (tmp_path / "out" / "table.md").read_text()
    assert not benchmark(own, tmp_path / "out", Here(), say=quiet).failures  # tried again by --resume


def test_without_its_teachers_no_trial_of_an_id_is_tried(suite, tmp_path):
    class Failing(Here):
        def __call__(self, function, *args):
            if function.__name__ == "prepare_job":
                raise KDGymError("the hub did not answer")
            return super().__call__(function, *args)

    run = Failing()
    found = benchmark(suite(), tmp_path / "out", run, say=quiet)
    assert run.jobs == []
    assert list(found.failures) == ["KnowledgeSelect-SST2-v0"]
    write_tables(found)
    assert "failed: KDGymError: the hub did not answer" in (tmp_path / "out" / "table.md").read_text()


def test_an_unknown_stage_is_answered_with_the_nearest(suite, tmp_path):
    with pytest.raises(KDGymError, match="did you mean 'plain'"):
        benchmark(suite(), tmp_path / "out", Here(), ("plane",), quiet)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_says_by_whom(suite, tmp_path):
    with (
        locked(tmp_path / "out"),
        pytest.raises(KDGymError, match=f"in use by process {os.getpid()} on"),
    ):
        benchmark(suite(), tmp_path / "out", Here(), say=quiet)


def die_once(marker):
    """A job whose worker dies at the first call."""
    if not Path(marker).exists():
        Path(marker).write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die():
    """A job whose worker always dies."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_s_job_is_tried_again_then_reported(tmp_path):
    run = Local(1)
    try:
        assert run(die_once, str(tmp_path / "marker")) == "alive"
        with pytest.raises(WorkerDiedError, match="died 3 times"):
            run(die)
        assert run(len, [1, 2]) == 2
    finally:
        run.close()


def test_tables_come_from_the_records_alone(suite, tmp_path):
    claim = {"text": "It is 50 % better", "family": "KnowledgeSelect", "method": "single:hard", "others": ["uniform"]}
    own = suite(claims=[claim])
    found = benchmark(own, tmp_path / "out", Here(), say=quiet)
    (table,) = tables_of(found)
    row = table.row("single:hard")
    scores = [r.episode.scores["accuracy"] for r in found.records.values() if r.controller == "single:hard"]
    assert row.values("accuracy") == scores
    write_tables(found)
    text = (tmp_path / "out" / "table.md").read_text()
    assert f"| single:hard | 2 | {interval(scores).text()} |" in text
    told = json.loads((tmp_path / "out" / "table.json").read_text())
    assert told["tables"][0]["rows"][1]["score"]["mean"] == interval(scores).mean
    ((verdict,),) = [claim["verdicts"] for claim in told["claims"]]
    apart = np.mean(np.subtract(scores, table.row("uniform").values("accuracy")))
    assert verdict["score"]["mean"] == pytest.approx(apart)
    assert f"| {verdict['where']} | uniform | {apart:.3f}" in text
    latex = (tmp_path / "out" / "table.tex").read_text()
    assert r"\toprule" in latex
    assert r"Claim: It is 50 \% better" in latex
    for file in (tmp_path / "out" / "records").glob("*.json"):
        file.unlink()
        break
    write_tables(read_results(tmp_path / "out", own))
    text = (tmp_path / "out" / "table.md").read_text()
    assert "1 of 2" in text


def test_a_budget_of_equal_cost_costs_as_much(suite, tmp_path):
    names = ["uniform", "dml"]
    stage = {"ids": ["KnowledgeSelect-SST2"], "controllers": names, "budgets": ["own", "cost of dml"]}
    found = benchmark(suite(stages={"a": stage}, seeds=1), tmp_path / "out", Here(), say=quiet)
    plain, same = tables_of(found)
    assert {row.controller for row in same.rows} == {"uniform", "dml"}  # the dear one stands beside it

    def spent(table, name):
        episode = table.row(name).first.episode
        return episode.flops + episode.controller_flops

    assert spent(plain, "uniform") < 0.7 * spent(plain, "dml")
    assert spent(same, "uniform") == pytest.approx(spent(plain, "dml"), rel=0.2)  # batches differ in width


def test_an_agent_that_learns_is_trained_first(suite, tmp_path):
    stage = {"ids": ["KnowledgeSelect-SST2"], "controllers": ["uniform", "ppo"]}
    training = {"episodes": 2, "num_envs": 2}
    found = benchmark(suite(stages={"a": stage}, training=training), tmp_path / "out", Here(), say=quiet)
    learnt = [record for trial, record in found.records.items() if trial.controller == "ppo"]
    assert len(learnt) == 2
    assert all(record.trained for record in learnt)


# ---------------------------------------------------------------------- the command


def start(*words, **options):
    command = [sys.executable, "-m", "kd_gym", "benchmark", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def test_the_command_from_end_to_end(suite, tmp_path, monkeypatch, capsys):
    suite()
    monkeypatch.chdir(tmp_path)
    done = start("own.yaml", "--workers", "2", cwd=tmp_path)
    said, _ = done.communicate(timeout=200)
    assert done.returncode == 0, said
    assert "[4/4]" in said
    assert (tmp_path / "runs/benchmark-own/table.md").exists()
    with pytest.raises(SystemExit) as left:
        main(["benchmark", "own.yaml"])
    assert left.value.code == 2
    assert "--resume" in capsys.readouterr().err


def test_workers_end_with_the_run_that_started_them(suite, tmp_path):
    suite(seeds=50)
    run = start("own.yaml", "--out", "out", "--workers", "2", cwd=tmp_path)
    for line in run.stdout:
        if line.startswith("[1/"):
            break
    tasks = Path(f"/proc/{run.pid}/task").glob("*/children")  # threads start processes too
    children = [child for task in tasks for child in task.read_text().split()]
    assert len(children) >= 2
    run.kill()
    run.wait()
    deadline = time.time() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.time() < deadline:
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


@pytest.mark.slow
def test_smoke_killed_ten_times_ends_with_the_same_table(tmp_path):
    whole = start("smoke", "--out", str(tmp_path / "whole"), "--workers", "2")
    said, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, said
    moments = random.Random(5)
    for _ in range(10):
        run = start("smoke", "--out", str(tmp_path / "killed"), "--workers", "2", "--resume", start_new_session=True)
        time.sleep(moments.uniform(4, 16))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    run = start("smoke", "--out", str(tmp_path / "killed"), "--workers", "1", "--resume")
    said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said
    one, other = (table_without_seconds(tmp_path / name) for name in ("whole", "killed"))
    assert one.replace("whole", "killed") == other
    records = [
        {f.name: Record.read(f).episode.parameters for f in (tmp_path / n / "records").iterdir()}
        for n in ("whole", "killed")
    ]
    assert records[0] == records[1]
