"""Training, scoring and the run directory, from the outside: through the API and the command line, on tiny students."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_gym import KDGymError
from kd_gym.agents.protocol import AGENTS, Controller, agent_class, make_controller
from kd_gym.agents.saving import load_tree
from kd_gym.agents.sb3 import SB3Agent
from kd_gym.backend.encoder import encode
from kd_gym.cli import main
from kd_gym.envs.episodes import Episodes
from kd_gym.envs.faces import TRAIN_SEEDS
from kd_gym.envs.lab import Lab
from kd_gym.envs.registration import FAMILIES
from kd_gym.experiments import evaluate as evaluate_module
from kd_gym.experiments import score
from kd_gym.experiments import train as train_module
from kd_gym.experiments.evaluate import Comparison, Row, compare, load_controller
from kd_gym.experiments.runs import RunConfig, checkpoint_path, read_config, save_checkpoint
from kd_gym.experiments.score import Episode, play
from kd_gym.experiments.setup import EVALUATION_SEEDS, SELECTION_SEEDS, EnvSpec, agent_for
from kd_gym.experiments.stats import interval, paired
from kd_gym.experiments.tables import comparison_table
from kd_gym.experiments.train import resume, train

ENV = "KnowledgeSelect-SST2"
TINY = EnvSpec(ENV, backend="tiny")
KNOWLEDGE = TINY.lab().recipe.process.knowledge
DECISIONS = TINY.make().family.decisions
LEARNERS = [name for name in AGENTS.names() if agent_class(name)[0].learns]
ROOT = Path(__file__).parents[1]


def events_of(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def settings(**changes):
    return {"steps": 12 * DECISIONS, "num_envs": 2, "seed": 3, "backend": "tiny", "eval_seeds": 2, **changes}


@pytest.fixture
def reviews(monkeypatch):
    """Looks at `select` after every 4 episodes, so that short trainings have checkpoints too."""
    monkeypatch.setattr(train_module, "REVIEW_EPISODES", 4)


def home(agent):
    """The first family that an agent serves."""
    for name in FAMILIES:
        try:
            return agent_for(agent, EnvSpec(f"{name}-SST2", backend="tiny"))[2]
        except KDGymError:
            continue
    raise AssertionError(f"{agent} serves no family")


def check_run(folder, agent, result):
    config, spec = read_config(folder), home(agent)
    steps, family = config.steps, spec.make().family
    fixed = ["uniform", "random", *(f"single:{name}" for name in family.labels)]
    assert (config.env, config.agent) == (spec.id, agent)
    assert (folder / "command.txt").read_text() == "the command\n"
    assert all((folder / name / "about.json").is_file() for name in ("best", "checkpoint"))
    assert not list(folder.glob("*.partial")) + list(folder.glob("*.old"))
    assert json.loads((folder / "checkpoint" / "about.json").read_text())["steps"] == steps

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    loaded = json.loads((folder / "result.json").read_text(), parse_constant=refuse)
    assert [row["name"] for row in loaded["rows"]] == [agent, *fixed] == [row.name for row in result.comparison.rows]
    assert [row["fixed"] for row in loaded["rows"]] == [False] + [True] * len(fixed)
    assert loaded["steps"] == steps
    assert agent in loaded["rows"][0]["verdict"]
    assert {e["seed"] for row in loaded["rows"] for e in row["episodes"]} == {EVALUATION_SEEDS, EVALUATION_SEEDS + 1}
    assert all(len(e["actions"]) == family.decisions for row in loaded["rows"] for e in row["episodes"])

    events = events_of(folder)
    tags = events.Tags()["scalars"]
    for tag in tags:
        points = events.Scalars(tag)
        assert all(math.isfinite(p.value) for p in points), tag
        assert all(0 < p.step <= steps for p in points), tag
        assert [p.step for p in points] == sorted(p.step for p in points), tag
    expected = {"student/accuracy", "student/cross_entropy", "student/agreement", "student/failures", "reward/return"}
    expected |= {"policy/entropy", "policy/advantage_over_uniform", "score/report_accuracy"}
    expected |= {"reward/cross_entropy_drop", "cost/gflops", "cost/evaluation_seconds", "eval/select_accuracy"}
    expected |= {f"student/loss_{name}" for name in family.recipe.process.knowledge}
    expected |= {f"policy/weight_{name}_{what}" for name in family.labels for what in ("mean", "spread")}
    assert expected <= set(tags)
    assert {"custom_scalars__config__", "_hparams_/session_start_info"} <= set(events.summary_metadata)
    assert "policy/worth_of_decisions" in events.Tags()["images"]
    assert [p.step for p in events.Scalars("reward/return")] == episode_steps(steps, config.num_envs, family.decisions)
    means = np.array([[p.value for p in events.Scalars(f"policy/weight_{name}_mean")] for name in family.labels])
    assert means.sum(0) == pytest.approx(1)
    images = events.Images("policy/weights_over_progress")
    assert [i.step for i in images] == [p.step for p in events.Scalars(f"policy/weight_{family.labels[0]}_mean")]
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    assert [p.step for p in events.Scalars("eval/select_accuracy")] == [i.step for i in images]
    return events


def episode_steps(steps, students, decisions=DECISIONS):
    """The step at which each episode ends, all students in lockstep."""
    return [at for at in range(students * decisions, steps + 1, students * decisions) for _ in range(students)]


@pytest.mark.slow
@pytest.mark.parametrize("agent", LEARNERS)
def test_a_training_leaves_a_whole_run_and_stable_baselines_tags(agent, tmp_path, reviews):
    spec = home(agent)
    steps = 20 * spec.make().family.decisions
    result = train(spec.env, agent, out=tmp_path / "run", command="the command", **settings(steps=steps))
    events = check_run(tmp_path / "run", agent, result)
    tags = events.Tags()["scalars"]
    if not issubclass(agent_class(agent)[0], SB3Agent):
        assert any(tag.startswith(f"{agent}/") for tag in tags)
        return
    assert {"time/fps", "rollout/ep_rew_mean", "rollout/ep_len_mean"} <= set(tags)
    assert any(tag.startswith("train/") and "loss" in tag for tag in tags)
    assert events.Scalars("rollout/ep_len_mean")[-1].value == DECISIONS
    assert events.Scalars("time/fps")[-1].step == 20 * DECISIONS


def test_an_own_agent_trains_like_a_built_in_one(tmp_path, reviews):
    agent = "examples.custom_agent:RandomSearch"
    config = {"agent_config": {"width": 0.5}, "eval_seeds": 2}
    result = train(ENV, agent, out=tmp_path / "run", command="the command", **settings(**config))
    check_run(tmp_path / "run", agent, result)
    assert read_config(tmp_path / "run").agent_config == {"width": 0.5}


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "run"
    for agent, changes, message in (
        ("uniform", {}, "uniform does not learn; score it with: kd-gym evaluate uniform"),
        ("sac", {"env_config": {"action": "choice"}}, "SACAgent takes no 'choice' actions; it takes weights"),
        ("ppo", {"seed": TRAIN_SEEDS}, "the seed must lie between"),
        ("ppo", {"steps": 0}, "must be at least 1"),
    ):
        with pytest.raises(KDGymError, match=message):
            train(ENV, agent, out=out, **settings(**changes))
        assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(KDGymError, match="is not empty"):
        train(ENV, "ppo", out=out, **settings())
    assert [f.name for f in out.iterdir()] == ["mine.txt"]


# ---------------------------------------------------------------------- interrupted trainings

KILLED = """
import os, signal, sys
from pathlib import Path
from kd_gym.experiments import train, watch

train.REVIEW_EPISODES = 4
episode = watch.Watch._episode

def counted(self, slot, info):
    episode(self, slot, info)
    if self.ended == 10:  # behind the checkpoint of 8 episodes
        self.writer.flush()
        os.kill(os.getpid(), signal.SIGKILL)

watch.Watch._episode = counted
train.train(
    {env!r}, {agent!r}, out=Path({out!r}), steps={steps}, num_envs=2, seed=3, backend="tiny", eval_seeds=1,
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["ppo", "sac", "examples.custom_agent:RandomSearch"])
def test_a_killed_training_is_resumed_from_its_checkpoint(agent, tmp_path):
    out, steps = tmp_path / "run", 16 * DECISIONS
    script = KILLED.format(env=ENV, agent=agent, out=str(out), steps=steps)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert json.loads((out / "checkpoint" / "about.json").read_text())["steps"] == 8 * DECISIONS
    assert not (out / "result.json").exists()
    seen = [p.step for p in events_of(out).Scalars("reward/return")]
    assert seen == episode_steps(10 * DECISIONS, 2)  # ended behind the checkpoint, so they count no more

    command = [sys.executable, "-m", "kd_gym", "train", "--resume", str(out)]
    resumed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "single:hard" in resumed.stdout
    assert json.loads((out / "result.json").read_text())["steps"] == steps
    assert json.loads((out / "checkpoint" / "about.json").read_text())["steps"] == steps
    events = events_of(out)
    assert [p.step for p in events.Scalars("reward/return")] == episode_steps(steps, 2)
    if agent in LEARNERS:
        assert load_tree(out / "checkpoint")["steps"] == steps
        assert events.Scalars("time/fps")[-1].step == steps


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class Counter(Controller):
    """A controller whose whole state is a number."""

    learns = True
    value = 0

    def act(self, observation):
        return np.zeros(self.action_space.shape, np.float32)

    def save(self, folder):
        (folder / "value.json").write_text(json.dumps(self.value))

    def load(self, folder):
        self.value = json.loads((folder / "value.json").read_text())


@pytest.mark.parametrize("operation", ["rename", "rmtree", "save"])
def test_a_checkpoint_killed_at_any_moment_leaves_an_old_or_a_new_one(operation, tmp_path, monkeypatch):
    calls, limit = 0, 0

    def dying(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == limit:
                raise Killed
            return function(*args, **kwargs)

        return call

    owner, name = {"rename": (Path, "rename"), "rmtree": (shutil, "rmtree"), "save": (Counter, "save")}[operation]
    counter = Counter(TINY.make())
    save_checkpoint(counter, tmp_path, "checkpoint", {"steps": 0})
    monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    kills = 0
    for at in (1, 2, 1, 3, 2, 2, 1, 4):  # each starts from what the kill before has left
        limit = at
        last, calls = counter.value, 0
        counter.value = last + 1
        try:
            save_checkpoint(counter, tmp_path, "checkpoint", {"steps": counter.value})
        except Killed:
            kills += 1
        calls = 100
        found = Counter(TINY.make())
        found.load(checkpoint_path(tmp_path, "checkpoint"))
        assert found.value in (last, last + 1)
        counter.value = found.value
    assert kills >= 3


@pytest.mark.parametrize("name", ["best", "checkpoint"])
def test_a_run_killed_between_the_two_renames_resumes(name, tmp_path, reviews, monkeypatch):
    out, agent = tmp_path / "run", "examples.custom_agent:RandomSearch"
    rename = Path.rename

    def dying(self, target):
        if self.name == f"{name}.partial" and (out / f"{name}.old").exists():
            raise Killed
        return rename(self, target)

    rising = iter(range(1000))  # every look at `select` finds a better policy
    monkeypatch.setattr(train_module, "play", lambda *a: replace_score(play(*a), next(rising)))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(Killed):
            train(ENV, agent, out=out, **settings(eval_seeds=1))
    assert not (out / name).exists()
    result = resume(out)
    assert (out / name / "about.json").is_file()
    assert json.loads((out / "result.json").read_text())["steps"] == 12 * DECISIONS
    assert result.comparison.rows[0].name == agent
    assert [p.step for p in events_of(out).Scalars("reward/return")] == episode_steps(12 * DECISIONS, 2)


def replace_score(episode, value):
    return Episode(**{**vars(episode), "scores": dict.fromkeys(episode.scores, float(value))})


def test_a_run_of_another_family_is_refused_before_anything_is_made(tmp_path):
    RunConfig("SamplePriority-SST2-v0", "ppo", 4, 1, 0, "auto", "auto", "full", 1).write(tmp_path)
    with pytest.raises(KDGymError, match="trained on SamplePriority-SST2-v0; it cannot control TeacherWeight-SST2-v0"):
        evaluate_module.evaluate(["uniform", str(tmp_path)], EnvSpec("TeacherWeight-SST2"))


def test_resume_names_what_is_wrong_with_a_folder(tmp_path):
    with pytest.raises(KDGymError, match="is no run directory"):
        resume(tmp_path)
    (tmp_path / "config.yaml").write_text("env: x\n")
    with pytest.raises(KDGymError, match="is not of this version"):
        resume(tmp_path)


def test_a_resumed_training_draws_other_episodes_and_a_finished_one_none(tmp_path, reviews, monkeypatch):
    drawn = []
    begin = Episodes.begin

    def noted(self, slots, seeds):
        if len(self.seed) > 1:
            drawn.extend(seeds)
        begin(self, slots, seeds)

    monkeypatch.setattr(Episodes, "begin", noted)
    out = tmp_path / "run"
    train(ENV, "a2c", out=out, **settings(steps=8 * DECISIONS, eval_seeds=1))
    first = len(drawn)
    resume(out)
    assert len(drawn) == first
    config = read_config(out)
    RunConfig(**{**vars(config), "steps": 16 * DECISIONS}).write(out)
    resume(out)
    assert len(drawn) > first
    assert len(set(drawn)) == len(drawn)


# ---------------------------------------------------------------------- scores


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


# ---------------------------------------------------------------------- intervals


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for size in (2, 3, 5, 30):
        first, second = rng.normal(size=size), rng.normal(1, 2, size=size)
        found = interval(first.tolist())
        low, high = scipy.stats.t.interval(0.95, size - 1, first.mean(), scipy.stats.sem(first))
        assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
        bounds = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
        found = paired(first.tolist(), second.tolist())
        assert (found.mean - found.half, found.mean + found.half) == pytest.approx((bounds.low, bounds.high))
    assert interval([1.0, 2.0, 3.0]).text() == "2.000 ± 2.484"
    assert math.isnan(interval([0.5]).half)
    assert interval([0.5]).text() == "0.500"


@pytest.mark.parametrize("size", [3, 10])
def test_intervals_cover_the_mean_in_95_of_100_cases(size):
    rng = np.random.default_rng(size)
    runs_of = [interval((2 + rng.normal(size=size)).tolist()) for _ in range(3000)]
    covered = np.mean([abs(found.mean - 2) <= found.half for found in runs_of])
    assert covered == pytest.approx(0.95, abs=0.016)  # four standard errors
