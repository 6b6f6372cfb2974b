"""What a machine has, and how many students fit on it."""

import re
import sys

import gymnasium as gym
import pytest
import torch

from kd_gym import ENV_IDS
from kd_gym.backend.memory import free_bytes
from kd_gym.cli import main
from kd_gym.errors import KDGymError
from kd_gym.experiments.doctor import fit
from kd_gym.experiments.setup import EnvSpec

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["doctor", *arguments])
    out, err = capsys.readouterr()
    return end.value.code, out + err


@linux
@pytest.mark.parametrize("env_id", [name for name in ENV_IDS if name.endswith("SST2-v0")])
def test_the_number_of_students_that_fit_is_measured(env_id, capsys):
    code, text = said(capsys, "--fit", env_id, "--backend", "tiny")
    assert code == 0, text
    assert int(re.search(r"(\d+) students fit", text)[1]) > 0
    assert f"{torch.__version__}" in text


@linux
def test_a_larger_student_fits_less_often():
    small, large = (
        fit(EnvSpec("KnowledgeSelect-SST2", backend="tiny", config={"student": shape})) for shape in ("1x16", "3x256")
    )
    assert large.each > 4 * small.each  # the allocator's steps are coarse beside the small one
    assert large.largest < small.largest
    assert large.largest * large.each <= large.free


@linux
def test_more_students_than_memory_holds_are_refused_with_the_most_that_fit():
    with pytest.raises(KDGymError, match=r"at most (\d+) fit") as error:
        gym.make_vec("KnowledgeSelect-SST2-v0", num_envs=10**9, backend="tiny")
    most = int(re.search(r"at most (\d+) fit", str(error.value))[1])
    assert 0 < most < 10**9
    assert free_bytes(CPU) > 0


def test_mistakes_are_answered_in_a_line(capsys):
    assert said(capsys, "--fit", "KnowledgeSelekt-SST2")[0] == 2
    code, text = said(capsys, "--fit", "KnowledgeSelekt-SST2", "--backend", "tiny")
    assert code == 2
    assert "KnowledgeSelect-SST2" in text
    if not torch.cuda.is_available():
        assert "no CUDA device" in said(capsys, "--device", "cuda")[1]
