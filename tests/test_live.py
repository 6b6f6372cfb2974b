"""Teachers in the loop: any architecture as a function of its parameters, equal to what a store says of it."""

import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import BertConfig

from kd_gym.backend.encoder import keep
from kd_gym.backend.live import BertNetwork, HubNetwork, LiveTeacher, open_teacher
from kd_gym.backend.meta import dropout_of
from kd_gym.backend.state import Context
from kd_gym.backend.store import teacher_store
from kd_gym.backend.terms import Control
from kd_gym.backend.tiny import _generate, tiny_data, tiny_teacher
from kd_gym.envs.lab import quiet
from kd_gym.errors import KDGymError
from kd_gym.experiments.setup import EnvSpec
from kd_gym.tasks.data import build_data
from kd_gym.tasks.sources import Source
from kd_gym.tasks.task import TASKS
from test_teachers import CPU, FORMS, config_of, save_model, tokenizer_of


@pytest.fixture(params=FORMS)
def opened(request, tmp_path):
    """A checkpoint of each family: its data, its folder, and a live teacher of one student."""
    kind = request.param
    tokenizer, task = tokenizer_of(kind), TASKS.get("SST2")
    data = build_data(Source(task, _generate(task, 700, 0), _generate(task, 60, 1), "tiny:generated"), tokenizer, None)
    folder = save_model(tmp_path / kind, config_of(kind, len(tokenizer), data.classes))
    network, start = open_teacher(folder, data.vocabulary, data.classes, CPU, untuned=False)
    teacher = LiveTeacher(network, {"full": start}, 1)
    teacher.reset(0, "full")
    return kind, data, folder, teacher


def test_a_live_teacher_says_what_the_store_says(opened):
    kind, data, folder, teacher = opened
    assert isinstance(teacher.network, BertNetwork if kind == "bert" else HubNetwork)
    store = teacher_store(folder, data, "report", CPU, quiet)
    rows = torch.arange(len(data.split("report")))
    said = teacher(data.split("report").batch(rows[None]))
    assert torch.allclose(said.logits[0], store.logits, atol=1e-5, rtol=0)
    assert np.allclose(said.cls[0].transpose(0, 1).detach(), store.cls.float(), atol=5e-3, rtol=1e-3)
    assert teacher.depth == store.layers


def test_any_live_teacher_can_compute_in_bfloat16(opened):
    _, data, _, teacher = opened
    tokens = data.split("report").batch(torch.arange(20)[None])
    exact = teacher(tokens)
    teacher.precision = "bfloat16"
    half = teacher(tokens)
    for name in ("logits", "cls"):
        wanted, found = getattr(exact, name), getattr(half, name)
        assert found.dtype == torch.float32
        assert not torch.equal(found, wanted)
        assert float((found - wanted).norm() / wanted.norm()) < 0.03


def test_any_live_teacher_can_be_trained(opened):
    kind, data, folder, teacher = opened
    split = data.split("reward")
    tokens, labels = split.batch(torch.arange(32)[None]), split.labels[:32]
    before = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(teacher(tokens).logits[0], labels)
        before.append(float(loss.detach()))
        found = torch.autograd.grad(loss, list(teacher.params.values()), materialize_grads=True)
        teacher.step(dict(zip(teacher.params, found, strict=True)), 3e-3)
    assert before[-1] < 0.7 * before[0]
    teacher.reset(0, "full")
    assert float(torch.nn.functional.cross_entropy(teacher(tokens).logits[0], labels).detach()) == before[0]
    if kind != "bert":
        with pytest.raises(KDGymError, match="no dropout and no token-level states; take a BERT checkpoint"):
            teacher(tokens, detail=True)
        with pytest.raises(KDGymError, match="a student needs a BERT checkpoint"):
            open_teacher(folder, data.vocabulary, 2, CPU, untuned=True)


def test_teachers_of_several_students_are_one_stack():
    data = tiny_data("SST2")
    network, start = tiny_teacher(data, "full", False)
    many, other = LiveTeacher(network, {"full": start, "early": tiny_teacher(data, "early", False)[1]}, 2), None
    many.reset(0, "full")
    many.reset(1, "early")
    tokens = data.split("reward").batch(torch.arange(8)[None].expand(2, -1))
    both = many(tokens).logits
    for slot, name in enumerate(("full", "early")):
        other = LiveTeacher(network, {name: tiny_teacher(data, name, False)[1]}, 1)
        other.reset(0, name)
        one = type(tokens)(*(part[:1] for part in tokens))
        assert torch.allclose(other(one).logits[0], both[slot], atol=1e-5)
        assert torch.equal(many(one, [slot]).logits[0], other(one).logits[0])


def test_an_untuned_teacher_is_its_pretrained_body_with_a_head_of_zeros(tmp_path):
    data = tiny_data("MNLI")
    config = BertConfig(
        vocab_size=len(data.tokenizer), num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_labels=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    folder = save_model(tmp_path / "bert", config)
    _, tuned = open_teacher(folder, data.vocabulary, 3, CPU, untuned=False)
    network, start = open_teacher(folder, data.vocabulary, 3, CPU, untuned=True)
    assert start["classifier.weight"].shape == (32, 3)
    assert not start["classifier.weight"].any()
    assert not start["classifier.bias"].any()
    assert all(torch.equal(value, tuned[name]) for name, value in start.items() if "classifier" not in name)
    assert isinstance(network, BertNetwork)
    assert network.arch.classes == 3


def test_dropout_follows_from_its_keys_and_keeps_the_mean():
    x = torch.ones(2, 400, 50)
    drop = dropout_of(0.1, [1, 2], update=3)
    assert torch.equal(drop(x, "a"), dropout_of(0.1, [1, 2], update=3)(x, "a"))
    for other in (
        dropout_of(0.1, [5, 6], 3)(x, "a"), dropout_of(0.1, [1, 2], 4)(x, "a"),
        dropout_of(0.1, [1, 2], 3, 1)(x, "a"), drop(x, "b"),
    ):  # fmt: skip
        assert not torch.equal(other, drop(x, "a"))
    assert torch.equal(dropout_of(0.1, [2], 3)(x[:1], "a")[0], drop(x, "a")[1])  # each student has its own
    assert float(drop(x, "a").mean()) == pytest.approx(1, abs=0.01)
    assert float((drop(x, "a") == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert keep(x, "a") is x


def test_what_a_live_teacher_costs_is_counted_as_the_teachers(make_process):
    stored, live = make_process(), make_process(live=True)
    for process in (stored, live):
        process.reset([1], [Context()])
        process.advance(Control(torch.full((1, 4), 0.25)), 5)
    assert not stored.cost.teacher.any()
    assert live.cost.teacher[0] > live.cost.student[0] / 3 > 0
    assert live.cost.student[0] == stored.cost.student[0]
    assert live.cost.seconds["teacher"] > 0
    assert live.cost.flops[0] == live.cost.student[0] + live.cost.evaluation[0] + live.cost.teacher[0]


def test_every_second_is_counted_once_whoever_calls_whom(make_process, monkeypatch):
    ask = LiveTeacher.__call__

    def slow(self, *args, **kwargs):
        time.sleep(0.05)
        return ask(self, *args, **kwargs)

    def hook(process, control):
        time.sleep(0.05)
        process.evaluate(batches)
        return control

    monkeypatch.setattr(LiveTeacher, "__call__", slow)
    batches = tiny_data("SST2").split("reward").batches(16)
    process = make_process(live=True)
    begin = time.perf_counter()
    process.reset([1], [Context()])
    assert process.cost.seconds["student"] > 0
    process.hook = hook
    process.peek()
    process.advance(Control(torch.full((1, 4), 0.25)), 2)
    process.review()
    whole, spent = time.perf_counter() - begin, process.cost.seconds
    asked = process.recipe.scale_batches + 4
    assert spent["teacher"] >= asked * 0.05
    assert spent["controller"] >= 0.1
    assert 0 < spent["student"] < whole - asked * 0.05 - 0.1
    assert 0.9 * whole < sum(spent.values()) <= whole


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"knowledge": "hard,attention"}, "'attention' needs the states of all tokens, which no store holds"),
        ({"teacher": "alive"}, "unknown teacher 'alive': did you mean 'live'?"),
        ({"rows": "reward"}, "unknown rows 'reward': did you mean 'train\\+reward'?"),
        ({"knowledge": "hard,hard"}, "knowledge 'hard,hard' names a type twice"),
        ({"tau": 0.0}, "tau must be positive, not 0.0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, not -1.0"),
        ({"student": "3"}, "student '3' is no LAYERSxWIDTH with a width that 8 divides"),
        ({"student": "2x12"}, "student '2x12' is no LAYERSxWIDTH with a width that 8 divides"),
        ({"student": "4x16"}, "a teacher of 3 layers has none for each of the student's 4"),
        ({"horizon": 3}, "a horizon of 3 updates is shorter than an episode's 5 decisions"),
    ],
)
def test_arguments_that_no_env_can_have_are_one_clear_line(arguments, said):
    with pytest.raises(KDGymError, match=said) as caught:
        gym.make("KnowledgeSelect-SST2-v0", backend="tiny", **arguments)
    assert "\n" not in str(caught.value)


def test_several_teachers_are_stored_ones():
    with pytest.raises(KDGymError, match="several teachers are stored ones; teacher='live' is for ids with one"):
        gym.make("TeacherWeight-SST2-v0", backend="tiny", teacher="live")


def test_an_env_can_have_another_student_loss_and_horizon():
    spec = EnvSpec("KnowledgeSelect-SST2", backend="tiny", config={"student": "3x32", "horizon": 43, "tau": 2.0})
    env = spec.make()
    env.reset(seed=1)
    process = env.episodes.process
    assert process.params["2.q.weight"].shape == (1, 32, 32)
    assert (spec.family.decisions, spec.family.updates, process.recipe.horizon) == (5, 8, 40)
    assert process.recipe == replace(EnvSpec("KnowledgeSelect-SST2", backend="tiny").family.recipe.process,
                                     horizon=40, tau=2.0)  # fmt: skip
    over = False
    while not over:
        _, _, over, _, info = env.step(env.action_space.sample())
    assert info["updates"] == 40


def test_rows_of_reward_are_trained_on_clean_and_whole():
    config = {"rows": "train+reward", "context": "noise-40-share-25"}
    env = EnvSpec("KnowledgeSelect-SST2", backend="tiny", config=config).make()
    env.reset(seed=3)
    lessons, data = env.episodes.process.lessons, env.lab.data
    train, reward = len(data.split("train")), data.split("reward")
    assert torch.equal(lessons.labels[0, train:], reward.labels)
    flipped = (lessons.labels[0, :train] != data.split("train").labels).float().mean()
    assert 0.3 < flipped < 0.5
    seen = {int(row) for update in range(400) for row in lessons.rows([0], [update])[0].flatten()}
    assert {row for row in seen if row >= train} == set(range(train, train + len(reward)))
    assert len([row for row in seen if row < train]) < 0.3 * train
    said = lessons.teach([0], torch.tensor([[0, train, train + 5]]))[0]
    over = env.lab.teacher.over("reward")
    assert torch.equal(said.logits[0, 1:], over.logits[[0, 5]])
    assert torch.equal(said.logits[0, 0], env.lab.teacher.store.logits[0])
