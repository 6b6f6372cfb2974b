"""The same trials on a real Ray cluster of several nodes."""

import json
import os
import signal
import sys
import time

import pytest

from kd_gym.cli import main
from kd_gym.experiments.benchmark import benchmark
from kd_gym.experiments.executors import Ray, WorkerDiedError
from kd_gym.experiments.publish import write_tables
from kd_gym.experiments.suites import load_suite, trials_of

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.other = found.add_node(num_cpus=1)
    yield found
    ray.shutdown()
    found.shutdown()


def test_a_node_that_dies_costs_no_trial(cluster, tmp_path):
    suite, lines = load_suite("smoke"), []
    run = Ray(None, cluster.address)
    assert run.workers == 2

    def say(line):
        lines.append(line)
        if line.startswith("[20/"):
            cluster.remove_node(cluster.other, allow_graceful=False)

    try:
        found = benchmark(suite, tmp_path / "out", run, say=say)
    finally:
        run.close()
    wanted = {trial for stage in suite.stages for trial in trials_of(suite, stage)}
    assert found.failures == {}
    assert set(found.records) == wanted
    ended = [line.split(" ", 1)[1].split(":")[0] for line in lines if ": report" in line]
    assert len(ended) == len(set(ended)) == len(wanted)  # none lost, none twice
    write_tables(found)
    told = json.loads((tmp_path / "out" / "table.json").read_text())
    rows = [row for table in told["tables"] for row in table["rows"]]
    assert all(row["seeds"] == row["wanted"] for row in rows)


def count(values):
    """A job that does what it should."""
    return len(values)


def raise_value_error():
    """A job that raises."""
    raise ValueError("as it was raised")


def die():
    """A job whose worker always dies."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_job_raises_is_raised_here_and_a_dead_worker_is_reported(cluster):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    run = Ray(1, cluster.address)
    try:
        with pytest.raises(ValueError, match="as it was raised"):
            run(raise_value_error)
        with pytest.raises(WorkerDiedError, match="no worker survived it"):
            run(die)
        assert run(count, [1, 2]) == 2
    finally:
        run.close()


def test_an_address_that_does_not_answer_is_told_within_half_a_minute(capsys, tmp_path):
    begin = time.monotonic()
    with pytest.raises(SystemExit) as left:
        main(["benchmark", "smoke", "--out", str(tmp_path / "o"), "--executor", "ray", "--address", "127.0.0.1:1"])
    assert left.value.code == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err
    assert time.monotonic() - begin < 30
