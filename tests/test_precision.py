"""Students whose layers compute in bfloat16 while they learn."""

from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch

from kd_gym import KDGymError
from kd_gym.agents.protocol import AGENTS, Controller, agent_class
from kd_gym.backend.state import Context
from kd_gym.backend.teacher import fast_bfloat16
from kd_gym.backend.terms import Control
from kd_gym.backend.tiny import tiny_data
from kd_gym.envs import lab
from kd_gym.envs.registration import FAMILIES
from kd_gym.experiments.score import play
from kd_gym.experiments.setup import EnvSpec, agent_for

HALF = {"precision": "bfloat16"}
EVEN = Control(torch.full((2, 4), 0.25))
SPECS = {family: EnvSpec(f"{family}-SST2", backend="tiny") for family in FAMILIES}


@pytest.fixture(autouse=True)
def _device_that_has_it(monkeypatch):
    monkeypatch.setattr(lab, "fast_bfloat16", lambda device: True)  # torch computes in it anywhere, if slowly


def trained(make_process, **recipe):
    process = make_process(2, **recipe)
    process.reset([1, 2], [Context()] * 2)
    return process, process.advance(EVEN, 10)


def test_losses_agree_with_those_in_float32(make_process):
    (exact, wanted), (half, found) = trained(make_process), trained(make_process, **HALF)
    assert torch.allclose(found.losses, wanted.losses, rtol=0.02)
    assert torch.allclose(found.gradient_norm, wanted.gradient_norm, rtol=0.1)
    assert not torch.equal(found.losses, wanted.losses)
    assert {value.dtype for value in half.params.values()} == {torch.float32}
    assert torch.allclose(half.scale, exact.scale, rtol=0.02)


def test_the_layers_products_and_norms_are_in_bfloat16(make_process, monkeypatch):
    process = trained(make_process, **HALF)[0]
    seen = set()

    def spy(name, function):
        def noted(x, *others, **kwargs):
            seen.update((name, value.dtype) for value in (x, *others) if isinstance(value, torch.Tensor))
            return function(x, *others, **kwargs)

        return noted

    monkeypatch.setattr(torch, "baddbmm", spy("baddbmm", torch.baddbmm))
    monkeypatch.setattr(torch.nn.functional, "layer_norm", spy("norm", torch.nn.functional.layer_norm))
    process.advance(EVEN, 1)
    assert seen == {("baddbmm", torch.bfloat16), ("norm", torch.bfloat16)}


def test_evaluations_are_those_of_the_same_student_in_float32(make_process):
    half, exact = trained(make_process, **HALF)[0], make_process(2)
    exact.reset([1, 2], [Context()] * 2)
    exact.restore(half.snapshot())
    batches = tiny_data("SST2").split("reward").batches(16)
    assert torch.equal(half.evaluate(batches).cross_entropy, exact.evaluate(batches).cross_entropy)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_episode_brings_about_the_same(family):
    spec, rewards = SPECS[family], []
    for config in ({}, HALF):
        env = spec.with_config(**config).make()
        env.action_space.seed(0)
        env.reset(seed=1)
        rewards.append([env.step(env.action_space.sample())[1] for _ in range(spec.family.decisions)])
    assert rewards[0] != rewards[1]
    assert rewards[0] == pytest.approx(rewards[1], abs=0.01)


@pytest.mark.parametrize("name", [n for n in AGENTS.names() if agent_class(n)[0].begin is not Controller.begin])
def test_controllers_that_look_into_the_process_find_about_the_same(name):
    losses = []
    for config in ({}, HALF):
        fits = agent_class(name)[0].fits or FAMILIES
        cls, _, spec = agent_for(name, next(SPECS[f] for f in FAMILIES if f in fits).with_config(**config))
        env = spec.make()
        controller = cls(env, seed=0)
        episode = play(env, controller, seed=1, split="select")
        losses.append(episode.cross_entropy)
        assert not episode.failure
        assert not getattr(controller, "notes", dict)().get("skipped")
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_device_that_lacks_it_is_told_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(lab, "fast_bfloat16", lambda device: False)
    with pytest.raises(KDGymError, match=r"bfloat16 would be no faster .* no AVX512-BF16 or AMX; leave precision at"):
        gym.make("KnowledgeSelect-SST2-v0", device="cpu", data="no such folder", **HALF)


@pytest.mark.parametrize("generation", [7, 8])
def test_a_gpu_that_emulates_it_is_not_fast(monkeypatch, generation):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=generation))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert fast_bfloat16(torch.device("cuda")) == (generation >= 8)


def test_an_unknown_precision_is_one_clear_line():
    with pytest.raises(KDGymError, match="unknown precision 'float16': float32 or bfloat16"):
        gym.make("KnowledgeSelect-SST2-v0", backend="tiny", precision="float16")
