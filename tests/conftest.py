import inspect
import itertools
import os
from typing import Literal, get_args, get_origin

import gymnasium as gym
import pytest
import torch

import kd_gym  # noqa: F401 (registers the ids)
from commands import written
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Recipe
from kd_gym.backend.tiny import tiny_data, tiny_init, tiny_store, tiny_teacher, tiny_tokenizer
from kd_gym.cli import main
from kd_gym.envs import lab
from kd_gym.envs.recipes import Origin
from kd_gym.errors import KDGymError
from kd_gym.experiments import train as train_module
from kd_gym.plugins import load

pytest.register_assert_rewrite("families", "runs")


def variants(env_id):
    """All combinations of a family's own options that name a choice (`Literal`), as far as the family accepts them.

    The first one is the default.
    """
    family = load(str(gym.spec(env_id).entry_point)).Family
    choices = {
        name: [p.default, *(value for value in get_args(p.annotation) if value != p.default)]
        for name, p in inspect.signature(family).parameters.items()
        if get_origin(p.annotation) is Literal
    }
    accepted = []
    for values in itertools.product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        try:
            family(Origin(backend="tiny"), **options)
        except KDGymError:
            continue
        accepted.append(options)
    return accepted


def words(options):
    """Keyword arguments as the id of a test case."""
    return "-".join(map(str, options.values()))


class Here:
    """An executor that runs jobs in this process, and remembers them."""

    workers = 1

    def __init__(self):
        self.jobs = []

    def __call__(self, function, *args):
        self.jobs.append((function.__name__, args))
        return function(*args)

    def close(self):
        pass


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_GYM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)  # tiny products are fastest so, and workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture
def make_process():
    """A process of tiny students on generated text; a context's teachers are one of these, or several.

    They are stored ones, unless `live` is true or "untuned".
    """

    def make(students=1, task="SST2", dtype=torch.float32, teachers=("full", "early", "flipped"), live=False, **recipe):
        data = tiny_data(task)
        sets = teachers if isinstance(teachers, dict) else {name: (name,) for name in teachers}
        stores = {name: tuple(tiny_store(data, member) for member in members) for name, members in sets.items()}
        settings = {"horizon": 20, "batch": 8, **recipe}
        loop = None
        if live:
            opened = {name: tiny_teacher(data, members[0], live == "untuned") for name, members in sets.items()}
            network = opened["full"][0]
            starts = {name: start for name, (_, start) in opened.items()}
            loop = LiveTeacher(network, starts, students, live == "untuned", dtype=dtype)
        return DistillationProcess(
            data.split("train"), stores, tiny_init(data), Recipe(**settings), students, dtype=dtype, live=loop
        )

    return make


@pytest.fixture
def make_env():
    """A tiny env of an id."""

    def make(env="KnowledgeSelect-SST2-v0", **kwargs):
        return gym.make(env, backend="tiny", **kwargs).unwrapped

    return make


@pytest.fixture
def trained_on(monkeypatch):
    """What every update of a process trained on: the forward passes that gradients are taken of, with their rows."""
    passes, seen = [], []
    forward, gradients = DistillationProcess._forward, DistillationProcess._back

    def noted(self, given, slots, offset=0, drawn=None):
        rows = (drawn or self._rows(slots, offset))[0]
        passes.append((rows, forward(self, given, slots, offset, drawn)))
        return passes[-1][1]

    def trained(self, total, batch, part):
        seen.append(next(one for one in passes if one[1] is batch))
        return gradients(self, total, batch, part)

    monkeypatch.setattr(DistillationProcess, "_forward", noted)
    monkeypatch.setattr(DistillationProcess, "_back", trained)
    return seen


@pytest.fixture
def reviews(monkeypatch):
    """Looks at `select` after every 4 episodes, so that short trainings have checkpoints too."""
    monkeypatch.setattr(train_module, "REVIEW_EPISODES", 4)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A folder `work` of the test's own to run commands in, and no data given."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("KD_GYM_DATA", "")


@pytest.fixture
def complaint(capsys, tmp_path, own_folder):
    """The one line that a command says before it exits with 2 and leaves nothing behind."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert exit_.value.code == 2, said.err
        assert "Traceback" not in said.out + said.err
        lines = said.err.splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("kd-gym: ")
        assert not written(tmp_path / "cache"), "nothing half-written"
        assert not list((tmp_path / "work").iterdir()), "no run directory"
        return lines[0].removeprefix("kd-gym: ")

    return run


@pytest.fixture
def light_checkpoint(tmp_path, monkeypatch):
    """A folder with a tokenizer instead of the embedded model: data is read and carved under it."""
    folder = tmp_path / "checkpoint"
    tiny_tokenizer().save_pretrained(folder)
    monkeypatch.setattr(lab, "checkpoint_folder", lambda name: folder)
