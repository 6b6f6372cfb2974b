"""What the tests of trainings and their runs share."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_gym import KDGymError
from kd_gym.agents.protocol import AGENTS, agent_class
from kd_gym.envs.registration import FAMILIES
from kd_gym.experiments.runs import read_config
from kd_gym.experiments.setup import EVALUATION_SEEDS, EnvSpec, agent_for

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
