import inspect
import itertools
import os
from typing import Literal, get_args, get_origin

import gymnasium as gym
import pytest
import torch

import kd_gym  # noqa: F401 (registers the ids)
from kd_gym.backend.live import LiveTeacher
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Recipe
from kd_gym.backend.tiny import tiny_data, tiny_init, tiny_store, tiny_teacher
from kd_gym.envs.recipes import Origin
from kd_gym.errors import KDGymError
from kd_gym.plugins import load


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
