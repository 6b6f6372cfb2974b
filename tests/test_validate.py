"""Records are repeated exactly, and whatever was changed in one shows."""

import json

import pytest
import torch

from kd_gym.cli import main
from kd_gym.experiments.evaluate import evaluate
from kd_gym.experiments.records import Record
from kd_gym.experiments.setup import EnvSpec
from kd_gym.experiments.train import train
from kd_gym.experiments.validate import records_in, validate

ENV = "KnowledgeSelect-SST2"


@pytest.fixture
def record(tmp_path):
    """The file of a record, of a controller by name."""

    def make(controller="random", env=ENV, data="auto", backend="tiny", **config):
        folder = tmp_path / "records"
        evaluate([controller], EnvSpec(env, data, backend=backend, config=config), 1, records=folder)
        (file,) = [f for f in folder.iterdir() if f".{controller.split(':')[0]}" in f.name]
        return file

    return make


def change(file, **changes):
    """Change a record; keys name places in it, with `__` between."""
    told = json.loads(file.read_text())
    for place, value in changes.items():
        *path, last = place.split("__")
        at = told
        for key in path:
            at = at[key]
        at[last] = value(at[last]) if callable(value) else value
    file.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("env", "controller"),
    [
        (ENV, "random"),
        (ENV, "linucb"),
        (ENV, "lgtm"),
        (ENV, "dml"),
        (ENV, "minilm"),
        ("TeacherWeight-SST2", "ca-mkd"),
        ("SamplePriority-MRPC", "dynamic-kd"),
        ("JointControl-RTE", "random"),
    ],
)
def test_a_record_is_repeated_bit_by_bit(record, env, controller):
    verdict = validate(record(controller, env, context="noise-40"))
    assert (verdict.word, verdict.exact, verdict.differences) == ("repeated", True, ())


def test_a_trained_policy_is_repeated_by_its_actions(tmp_path):
    train(ENV, "ppo", steps=20, num_envs=2, backend="tiny", out=tmp_path / "run", eval_seeds=1)
    files = records_in([tmp_path / "run"])
    assert len(files) >= 3
    assert {validate(file).word for file in files} == {"repeated"}
    own = [file for file in files if Record.read(file).trained]
    assert own
    change(own[0], episode__actions=one_action)
    assert validate(own[0]).word == "differs"
    change(own[0], episode__actions=lambda a: a[:-1])
    assert "more decisions" in validate(own[0]).why


def one_digit(score):
    return round(score + 0.001, 6)


def one_action(actions):
    return [[value * 0.9 for value in actions[0]], *actions[1:]]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"episode__scores__accuracy": one_digit}, "report accuracy"),
        ({"episode__cross_entropy": one_digit}, "report cross-entropy"),
        ({"episode__actions": one_action}, "actions"),
        ({"episode__actions": lambda a: a[:-1]}, "actions"),
        ({"episode__actions": None}, "TypeError"),
        ({"episode__flops": lambda flops: flops + 1}, "flops"),
        ({"episode__reward": one_digit}, "reward"),
        ({"episode__trace__reward": lambda t: [0.0, *t[1:]]}, "trace"),
        ({"fixed": False}, "fixed"),
        ({"controller": "uniform"}, "actions"),
        ({"machine__threads": 0}, "RuntimeError"),
        ({"episode__actions": lambda a: [*a, a[-1]]}, "actions"),
        ({"episode__trace__cross_entropy": lambda t: [*t[:-1], one_digit(t[-1])]}, "decision 5"),
        ({"episode__trace__cross_entropy": lambda t: t[:-1]}, "decision 5"),
        ({"episode__parameters": "0" * 16}, "parameters"),
        ({"episode__seed": lambda seed: seed + 1}, "cross-entropy"),
        ({"kwargs__context": "noise-40"}, "cross-entropy"),
    ],
)
def test_whatever_was_changed_shows(record, changes, name):
    file = record("random")
    change(file, **changes)
    verdict = validate(file)
    assert verdict.word == "differs"
    assert name in " ".join([verdict.why, *map(str, verdict.differences)])


def test_actions_that_their_controller_did_not_take(record):
    file = record("lgtm")
    change(file, episode__actions=one_action)
    verdict = validate(file)
    assert verdict.word == "differs"
    assert verdict.differences[0].name == "actions"


def test_scores_of_another_version_show(record, monkeypatch):
    file = record("uniform")
    change(file, machine__kd_gym="0.0.9", episode__scores__accuracy=lambda score: score + 0.05)
    verdict = validate(file)
    assert (verdict.word, verdict.exact) == ("differs", False)
    assert "kd_gym" in verdict.why


def test_elsewhere_numbers_may_be_off_by_the_tolerance(record):
    file = record("uniform")
    other = "another CPU"
    change(file, machine__cpu=other, episode__parameters="0" * 16, episode__scores__accuracy=lambda s: s + 0.009)
    verdict = validate(file)
    assert (verdict.word, verdict.exact, verdict.why) == ("repeated", False, "other cpu: within the tolerance")


def test_the_recorded_number_of_threads_is_taken(record):
    file = record("uniform")
    assert Record.read(file).machine.threads == torch.get_num_threads() == 1
    torch.set_num_threads(2)
    try:
        assert validate(file).exact
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_fingerprint": "0" * 16}, "the data here is"),
        ({"teachers__full": "0" * 16}, "teacher full is tiny-full here"),
        ({"env": "KnowledgeSelect-SST3-v0"}, "did you mean"),
        ({"controller": "nobody:Here"}, "nobody"),
        ({"format": 0}, "no record of this version"),
        ({"episode": {}}, "damaged"),
        ({"machine": None}, "damaged"),
        ({"kwargs": {}}, "damaged"),
        ({"kwargs__colour": "red"}, "damaged"),
    ],
)
def test_what_cannot_be_compared_says_why(record, changes, words):
    file = record("random")
    change(file, **changes)
    verdict = validate(file)
    assert verdict.word == "not comparable"
    assert words in verdict.why


def test_the_command_ticks_and_crosses(record, capsys, tmp_path):
    record("random")
    file = record("uniform")

    def said(*words):
        with pytest.raises(SystemExit) as left:
            main(["validate", *map(str, words)])
        told = capsys.readouterr()
        return left.value.code, told.out + told.err

    code, text = said(tmp_path)  # finds records/ in it
    assert (code, text.count("✓")) == (0, 2)
    change(file, data_fingerprint="0" * 16)
    code, text = said(tmp_path / "records")
    assert (code, text.count("✓"), text.count("–")) == (3, 1, 1)
    change(file, data_fingerprint=Record.read(next(f for f in file.parent.iterdir() if f != file)).data_fingerprint)
    change(file, episode__scores__accuracy=one_digit)
    code, text = said(tmp_path / "records")
    assert (code, text.count("✗")) == (1, 1)
    assert "report accuracy: expected" in text
    assert said(tmp_path / "none")[0] == 2
    (tmp_path / "empty").mkdir()
    assert "holds no records" in said(tmp_path / "empty")[1]
