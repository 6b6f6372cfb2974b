"""The reinforced methods: their gradients against references written by hand, and what they learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kd_gym.agents import aks, rlkd
from kd_gym.backend.teacher import TeacherSpec
from kd_gym.envs import knowledge_select, teacher_weight
from kd_gym.envs.recipes import TeacherSet
from kd_gym.experiments.setup import EnvSpec, agent_for

# ---------------------------------------------------------------------- AKS


def by_hand(p, state, *more):
    """The network of three layers over two encoders, from its parameters alone."""

    def layers(x, name, places):
        for i, place in enumerate(places):
            x = x @ p[f"{name}.{place}.weight"].T + p[f"{name}.{place}.bias"]
            x = x.clamp(min=0) if i < len(places) - 1 else x
        return x

    parts = [layers(state[:, :3], "student", (0, 2)), layers(state[:, 3:], "teacher", (0, 2)), *more]
    return layers(torch.cat(parts, 1), "head", (0, 2, 4))


def test_gradients_of_actor_and_critic_are_those_of_the_formulas_by_hand():
    torch.manual_seed(0)
    actor, critic = (aks.Network(3, 5, more, out, 8).double() for more, out in ((0, 4), (4, 1)))
    state, following = torch.randn(2, 7, 8, dtype=torch.double)
    action, reward = torch.rand(7, 4, dtype=torch.double), torch.randn(7, dtype=torch.double)
    over = (torch.arange(7) % 3 == 0).double()
    seen = aks.Transitions(state, action, reward, following, over)

    p, q = (dict(net.named_parameters()) for net in (actor, critic))
    after = by_hand(q, following, 1 / (1 + (-by_hand(p, following)).exp()))[:, 0]
    target = (reward + 0.9 * (1 - over) * after).detach()
    expected = torch.autograd.grad(((by_hand(q, state, action)[:, 0] - target) ** 2).mean(), list(q.values()))
    found = torch.autograd.grad(aks.critic_loss(actor, critic, seen, 0.9), list(q.values()))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=0)

    # the deterministic policy gradient, as a chain: dQ/da at mu(s), then da/dtheta
    mu = 1 / (1 + (-by_hand(p, state)).exp())
    chosen = mu.detach().requires_grad_()
    worth = torch.autograd.grad(by_hand(q, state, chosen).mean(), chosen)[0]
    expected = torch.autograd.grad(mu, list(p.values()), -worth)
    found = torch.autograd.grad(aks.actor_loss(actor, critic, seen), list(p.values()))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=0)


# ---------------------------------------------------------------------- RL-KD


@pytest.mark.parametrize("paper_form", [False, True])
@pytest.mark.parametrize("head", ["joint", "shared"])
def test_gradient_of_the_gates_is_that_of_the_formula_by_hand(head, paper_form):
    torch.manual_seed(0)
    n, b, m, c, width = 3, 5, 4, 2, 6
    gates = rlkd.Gates(width, m, c, head).double()
    for p in gates.parameters():
        torch.nn.init.normal_(p)
    cls, said = torch.randn(n, b, width, dtype=torch.double), torch.rand(n, b, m, c, dtype=torch.double)
    loss, chosen = torch.rand(n, b, m, dtype=torch.double), torch.randint(2, (n, b, m)).double()
    advantage = torch.randn(n, dtype=torch.double)

    logits = gates(cls, said, loss)
    rlkd.policy_loss(logits, chosen, advantage, paper_form).backward()
    # d log pi / d logit = a - sigma; of pi itself, that times pi
    sigma = 1 / (1 + (-logits.detach()).exp())
    score = chosen - sigma
    if paper_form:
        score = score * (chosen * sigma + (1 - chosen) * (1 - sigma))
    slope = -advantage[:, None, None] * score / (n * b * m)
    if head == "joint":
        inputs = torch.cat([cls, loss], -1).reshape(n * b, -1)
        flat, said = slope.reshape(n * b, m), said.reshape(n * b, -1)
    else:
        inputs = torch.cat([cls[:, :, None].expand(n, b, m, width), loss[..., None]], -1).reshape(n * b * m, -1)
        flat, said = slope.reshape(-1, 1), said.reshape(n * b * m, -1)
    assert torch.allclose(gates.states.weight.grad, flat.T @ inputs, atol=1e-6, rtol=0)
    assert torch.allclose(gates.said.weight.grad, flat.T @ said, atol=1e-6, rtol=0)
    assert torch.allclose(gates.states.bias.grad, flat.sum(0), atol=1e-6, rtol=0)


def test_leave_one_out_takes_off_the_mean_of_the_others():
    spec = agent_for("rlkd", EnvSpec("TeacherWeight-SST2", backend="tiny"))[2]
    agent = rlkd.RLKD(spec.make(), config=rlkd.RLKDConfig(baseline="leave-one-out"))
    reward, before = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 1.0, 2.0])
    found = agent._advantage(reward, before, torch.ones(3, dtype=torch.bool))
    assert found.tolist() == pytest.approx([1 - 2.5, 1 - 2.5, 4 - 1])  # gains 1, 1, 4


# ---------------------------------------------------------------------- what they learn


def gates_after_training(monkeypatch, tmp_path, seed, sign=1):
    """The share of open gates of a good teacher and of two that answer at random, over an episode."""
    recipe = teacher_weight.recipe_of
    names = ("full", "random-1", "random-2")

    def one_good_teacher(*args, **kwargs):
        made = recipe(*args, **kwargs)
        process = replace(made.process, horizon=60, batch=16, learning_rate=1e-2, tau=2.0, knowledge=("response",))
        return replace(made, process=process, teachers=(TeacherSet("full", tuple(map(TeacherSpec, names))),))

    monkeypatch.setattr(teacher_weight, "recipe_of", one_good_teacher)
    spec = agent_for("rlkd", EnvSpec("TeacherWeight-SST2", backend="tiny"))[2]
    agent = rlkd.RLKD(spec.make(), seed=seed)
    if sign < 0:
        honest = agent._advantage
        monkeypatch.setattr(agent, "_advantage", lambda *args: -honest(*args))
    students = 8
    agent.learn(spec.make_vec(students), students * 60 * 30, tmp_path)
    env = spec.make()
    seen, over, opened = env.reset(seed=10**9)[0], False, []
    while not over:
        action, _ = agent.predict(seen)
        if seen[0, 0] >= agent.config.warm:
            opened.append(action.mean(0))
        seen, _, over, _, _ = env.step(action)
    return np.mean(opened, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rlkd_finds_the_good_teacher_among_random_ones(monkeypatch, tmp_path, seed):
    good, *random = gates_after_training(monkeypatch, tmp_path, seed)
    assert good > 0.9
    assert max(random) < 0.1


@pytest.mark.slow
def test_rlkd_with_the_sign_of_the_reward_flipped_does_not(monkeypatch, tmp_path):
    good, *random = gates_after_training(monkeypatch, tmp_path, 0, sign=-1)
    assert good < 0.5
    assert max(random) > 0.5


def weights_after_training(monkeypatch, tmp_path, seed, sign=1):
    """The mean weight of each knowledge type over an episode with 40 % label noise."""
    recipe = knowledge_select.recipe_of

    def longer(*args, **kwargs):
        made = recipe(*args, **kwargs)
        return replace(made, process=replace(made.process, horizon=60, batch=16, learning_rate=1e-2, tau=2.0))

    monkeypatch.setattr(knowledge_select, "recipe_of", longer)
    spec = agent_for("aks", EnvSpec("KnowledgeSelect-SST2", backend="tiny", config={"context": "noise-40"}))[2]
    agent = aks.AKS(spec.make(), seed=seed)
    vector = spec.make_vec(4)
    if sign < 0:
        step = vector.step
        vector.step = lambda actions: tuple(-x if i == 1 else x for i, x in enumerate(step(actions)))
    agent.learn(vector, 4 * agent.family.decisions * 60, tmp_path)
    env = spec.make()
    seen, over, used = env.reset(seed=10**9)[0], False, []
    while not over:
        seen, _, over, _, info = env.step(agent.predict(seen)[0])
        used.append(info["control"])
    return {name: np.mean([control[name] for control in used]) for name in used[0]}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_aks_turns_from_noisy_labels_to_soft_targets(monkeypatch, tmp_path, seed):
    used = weights_after_training(monkeypatch, tmp_path, seed)
    assert used["hard"] < used["response"] - 0.2


@pytest.mark.slow
def test_aks_with_the_sign_of_the_reward_flipped_does_not(monkeypatch, tmp_path):
    used = weights_after_training(monkeypatch, tmp_path, 0, sign=-1)
    assert used["hard"] > used["response"] - 0.1
