import gymnasium as gym
import pytest
import torch

import kd_gym  # noqa: F401 (registers the ids)
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.terms import Recipe
from kd_gym.backend.tiny import tiny_data, tiny_init, tiny_store


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_GYM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)  # tiny products are fastest so, and workers share the cores


@pytest.fixture
def make_process():
    """A process of tiny students on generated text."""

    def make(students=1, task="SST2", dtype=torch.float32, teachers=("full", "early", "flipped"), **recipe):
        data = tiny_data(task)
        stores = {name: (tiny_store(data, name),) for name in teachers}
        settings = {"horizon": 20, "batch": 8, **recipe}
        return DistillationProcess(
            data.split("train"), stores, tiny_init(data), Recipe(**settings), students, dtype=dtype
        )

    return make


@pytest.fixture
def make_env():
    """A tiny env of an id."""

    def make(env="KnowledgeSelect-SST2-v0", **kwargs):
        return gym.make(env, backend="tiny", **kwargs).unwrapped

    return make
