"""Trainings that were interrupted, at any moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kd_gym import KDGymError
from kd_gym.agents.protocol import Controller
from kd_gym.agents.saving import load_tree
from kd_gym.envs.episodes import Episodes
from kd_gym.experiments import evaluate as evaluate_module
from kd_gym.experiments import train as train_module
from kd_gym.experiments.runs import RunConfig, checkpoint_path, read_config, save_checkpoint
from kd_gym.experiments.score import Episode, play
from kd_gym.experiments.setup import EnvSpec
from kd_gym.experiments.train import resume, train
from runs import DECISIONS, ENV, LEARNERS, ROOT, TINY, episode_steps, events_of, settings

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
