"""Scores: which seeds, which numbers, and what is said of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kd_gym import KDGymError
from kd_gym.agents.protocol import make_controller
from kd_gym.backend.encoder import encode
from kd_gym.cli import main
from kd_gym.envs.episodes import Episodes
from kd_gym.envs.faces import TRAIN_SEEDS
from kd_gym.envs.lab import Lab
from kd_gym.experiments import evaluate as evaluate_module
from kd_gym.experiments import score
from kd_gym.experiments import train as train_module
from kd_gym.experiments.evaluate import Comparison, Row, compare, load_controller
from kd_gym.experiments.score import Episode, play
from kd_gym.experiments.setup import EVALUATION_SEEDS, SELECTION_SEEDS, EnvSpec
from kd_gym.experiments.tables import comparison_table
from kd_gym.experiments.train import train
from runs import DECISIONS, ENV, ROOT, TINY, settings


@pytest.mark.parametrize("seed", [0, TRAIN_SEEDS - 1])
@pytest.mark.parametrize("agent", ["a2c", "examples.custom_agent:RandomSearch"])
def test_seeds_of_training_selection_and_evaluation_are_disjoint(agent, seed, tmp_path, reviews, monkeypatch):
    drawn = {"vector": set(), "single": set()}
    begin = Episodes.begin

    def noted(self, slots, seeds):
        drawn["vector" if len(self.seed) > 1 else "single"].update(int(s) for s in seeds)
        begin(self, slots, seeds)

    monkeypatch.setattr(Episodes, "begin", noted)
    train(ENV, agent, out=tmp_path / "run", **settings(seed=seed, steps=8 * DECISIONS))
    assert len(drawn["vector"]) == 10  # 8 episodes, and two begun by the autoreset at the end
    assert all(0 <= s < TRAIN_SEEDS for s in drawn["vector"])
    selection = {SELECTION_SEEDS + i for i in range(train_module.REVIEW_SEEDS)}
    assert drawn["single"] == selection | {EVALUATION_SEEDS, EVALUATION_SEEDS + 1}
    assert TRAIN_SEEDS <= EVALUATION_SEEDS < SELECTION_SEEDS


@pytest.mark.parametrize("split", ["report", "select"])
@pytest.mark.parametrize("task", ["SST2", "MRPC", "CoLA", "MNLI"])
def test_the_score_is_that_of_an_own_computation(task, split):
    spec = EnvSpec(f"KnowledgeSelect-{task}", backend="tiny")
    env, again = spec.make(), spec.make()
    episode = play(env, make_controller("random", env, seed=4), 77, split)
    _, info = again.reset(seed=77)
    total = 0.0
    for action in episode.actions:
        _, reward, over, _, info = again.step(np.array(action, np.float32))
        total += reward
    assert over
    assert episode.reward == total
    assert episode.flops == info["flops"]
    assert episode.reward_cross_entropy == info["reward_split"]["cross_entropy"]

    rows, process = env.lab.data.split(split), again.episodes.process
    predicted, losses = [], []
    for row in range(len(rows.labels)):  # one by one: no buckets, no padding
        tokens = rows.batch(torch.tensor([[row]]))
        logits = encode(process.params, process.init.arch, tokens).logits[0, 0].detach().double()
        predicted.append(int(logits.argmax()))
        losses.append(float(torch.logsumexp(logits, 0) - logits[rows.labels[row]]))
    true = rows.labels.tolist()
    assert episode.cross_entropy == pytest.approx(np.mean(losses), abs=1e-5)
    own = {"accuracy": np.mean([p == t for p, t in zip(predicted, true, strict=True)])}
    hits = sum(p == t == 1 for p, t in zip(predicted, true, strict=True))
    own["f1"] = 2 * hits / max(1, predicted.count(1) + true.count(1))
    own["mcc"] = np.nan_to_num(np.corrcoef(predicted, true)[0, 1]) if len(set(predicted)) > 1 else 0.0
    assert set(episode.scores) == set(env.lab.data.task.metrics)
    for name, value in episode.scores.items():
        assert value == pytest.approx(own[name], abs=1e-12)


def test_fixed_controls_are_scored_once_and_kept(tmp_path, monkeypatch):
    played = []

    def counted(env, controller, seed, split="report"):
        played.append((type(controller).__name__, seed))
        return play(env, controller, seed, split)

    monkeypatch.setattr(score, "play", counted)
    monkeypatch.setattr(evaluate_module, "play", counted)
    monkeypatch.setattr(evaluate_module, "teacher_scores", lambda *_: {})
    teachers = Lab.teachers
    folder = {"hash": "one"}

    def stored(self, *args):  # as if they were real ones, with a folder
        return tuple(replace(t, hash=folder["hash"], folder=tmp_path) for t in teachers(self, *args))

    monkeypatch.setattr(Lab, "teachers", stored)
    names = ["uniform", "single:hard", "single:response"]

    def table(seeds, spec=TINY):
        loaded = [(name, *load_controller(name, spec)) for name in names]
        return compare(loaded, "default", seeds)

    first = table(2)
    assert len(played) == 6
    assert table(2) == first  # with the seconds of the first time
    assert len(played) == 6
    table(3)
    assert len(played) == 9  # the new seed alone
    folder["hash"] = "two"
    table(2)
    assert len(played) == 15  # another teacher
    table(2, TINY.with_config(context="noise-30"))
    assert len(played) == 21  # another context
    own = load_controller("uniform", TINY)
    own_class = type("Own", (type(own[0]),), {"__module__": "mine"})(own[1].make())
    for _ in range(2):  # may change under its name, so it is never kept
        compare([("mine:Own", own_class, own[1])], "default", 1)
    assert len(played) == 23


def test_evaluate_gives_runs_and_heuristics_in_one_paired_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run, file = tmp_path / "run", tmp_path / "all.json"
    train(ENV, "examples.custom_agent:RandomSearch", out=run, **settings(steps=4 * DECISIONS, eval_seeds=1))
    names = [str(run), "uniform", "schedule:anneal", "static:1,2,0,0"]
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *names, "--env", ENV, "--backend", "tiny", "--seeds", "3", "--json", str(file)])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "mean ± half of the 95 % interval" in printed
    assert "3 seeds (few: intervals are wide)" in printed
    assert "paired over 3 seeds" in printed
    loaded = json.loads(file.read_text())
    assert [row["name"] for row in loaded["rows"]] == names
    for row in loaded["rows"]:
        assert [e["seed"] for e in row["episodes"]] == [EVALUATION_SEEDS + i for i in range(3)]
        values = [e["scores"]["accuracy"] for e in row["episodes"]]
        assert row["scores"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert loaded["data_fingerprint"] == TINY.lab().data.fingerprint
    assert {"env", "context", "source", "teachers", "metrics", "seeds"} <= set(loaded)
    assert "".join(loaded["rows"][0]["verdict"].split()) in "".join(printed.split())  # lines may be broken anywhere
    assert not any(row["verdict"] for row in loaded["rows"][1:])
    with pytest.raises(KDGymError, match="ppo has to learn first"):
        load_controller("ppo", TINY)


def comparison_of(**scores):
    """A comparison by hand: scores by controller, `agent` being the one that learnt."""

    def episode(seed, value):
        return Episode(seed, "default", {"accuracy": value}, 0.5, 0.1, 0.5, 10**9, 0, 0, 1.0, 0.0, "", [], {}, "")

    rows = [
        Row(name, [episode(seed, value) for seed, value in enumerate(values)], name != "agent")
        for name, values in scores.items()
    ]
    return Comparison("E-v0", "default", "here", "", "d", {"full": "t"}, {"accuracy": 0.9}, 60.0, ("accuracy",), rows)


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        ([0.90, 0.91, 0.92], "agent beats the best fixed control (good): 0.100 ± 0.000 accuracy, paired over 3 seeds"),
        ([0.70, 0.81, 0.81], "agent does not beat the best fixed control (good): -0.037 "),
        ([0.80, 0.81, 0.82], "agent does not beat the best fixed control (good): 0.000 "),
        ([0.80, 0.81, 0.99], "agent is ahead of the best fixed control (good), but not beyond chance: 0.057 "),
    ],
)
def test_the_verdict_is_plain(agent, said):
    comparison = comparison_of(agent=agent, poor=[0.5, 0.6, 0.99], good=[0.80, 0.81, 0.82])
    assert comparison.best_fixed.name == "good"
    assert comparison.verdict("agent").startswith(said)
    assert comparison.verdict("good") == ""
    table = comparison_table(comparison)
    assert table.row_count == 3
    assert "report accuracy 0.900" in table.caption


def test_one_seed_gives_no_interval_and_valid_json():
    comparison = comparison_of(agent=[0.9], good=[0.8])
    assert "but not beyond chance: 0.100 accuracy, paired over 1 seeds" in comparison.verdict("agent")
    text = json.dumps(comparison.as_json(), allow_nan=False)
    assert json.loads(text)["rows"][0]["scores"]["accuracy"] == {"mean": 0.9, "half": None}
