"""Searching settings: what is proposed, that only `select` is looked at, and that a search goes on."""

import dataclasses
import json

import optuna
import pytest

from conftest import Here
from kd_gym.agents.protocol import AGENTS
from kd_gym.cli import main
from kd_gym.errors import KDGymError
from kd_gym.experiments import score as score_module
from kd_gym.experiments.tune import _defaults, propose, tune

LEARNERS = [name for name in AGENTS.names() if getattr(AGENTS.get(name), "learns", False)]
ENV = "KnowledgeSelect-SST2"


@pytest.mark.parametrize("agent", LEARNERS)
def test_every_agent_s_settings_can_be_searched(agent):
    config = AGENTS.get(agent).Config
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.enqueue_trial(_defaults(config))
    first = propose(study.ask(), config)
    assert first == pytest.approx(dataclasses.asdict(config()))  # the defaults are the first trial
    drawn = [propose(study.ask(), config) for _ in range(20)]
    for name, value in dataclasses.asdict(config()).items():
        assert len({one[name] for one in drawn}) > 1
        if isinstance(value, float) and 0.5 <= value < 1:
            assert all(0.5 <= one[name] < 1 for one in drawn)
    for one in drawn:
        config(**one)


def test_a_search_goes_on_where_it_stopped_and_never_opens_report(tmp_path, monkeypatch):
    opened, lines = [], []
    measure = score_module.measure
    monkeypatch.setattr(
        score_module, "measure", lambda lab, process, split: (opened.append(split), measure(lab, process, split))[1]
    )
    asked = {"steps": 10, "num_envs": 2, "backend": "tiny", "say": lines.append}
    first = tune(ENV, "ppo", 1, Here(), tmp_path / "s", **asked)
    found = tune(ENV, "ppo", 3, Here(), tmp_path / "s", **asked)
    assert set(opened) == {"select"}
    assert len(lines) == len(found.tried) == 3
    assert first.default == found.default
    assert found.tried[0][0] == max(score for score, _ in found.tried)
    told = json.loads((tmp_path / "s" / "result.json").read_text())
    assert told["tried"][0] == {"score": found.tried[0][0], "settings": found.tried[0][1]}
    assert len({str(settings) for _, settings in found.tried}) == 3


def test_a_trial_that_fails_is_reported_and_the_others_go_on(tmp_path):
    class Failing(Here):
        calls = 0

        def __call__(self, function, *args):
            self.calls += 1
            if self.calls == 1:
                raise ValueError("no luck")
            return function(*args)

    found = tune(ENV, "ppo", 2, Failing(), tmp_path, steps=10, num_envs=2, backend="tiny", say=str)
    assert len(found.tried) == 2
    assert "no luck" in found.failures[0]


def test_bad_searches(tmp_path):
    with pytest.raises(KDGymError, match="does not learn"):
        tune(ENV, "uniform", 1, Here(), tmp_path, backend="tiny")
    with pytest.raises(KDGymError, match="at least 1"):
        tune(ENV, "ppo", 0, Here(), tmp_path, backend="tiny")


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = f"tune --env {ENV} --agent ppo --trials 2 --steps 10 --num-envs 2 --backend tiny --workers 2".split()
    with pytest.raises(SystemExit) as left:
        main(words)
    said = capsys.readouterr()
    assert left.value.code == 0, said
    assert "train with it:" in said.out
    assert "--agent-config.learning-rate" in said.out
    with pytest.raises(SystemExit) as left:
        main(words)
    assert "--resume" in capsys.readouterr().err
