"""Training and the run directory, from the outside, on tiny students."""

import pytest

from kd_gym import KDGymError
from kd_gym.agents.protocol import agent_class
from kd_gym.agents.sb3 import SB3Agent
from kd_gym.envs.faces import TRAIN_SEEDS
from kd_gym.experiments.runs import read_config
from kd_gym.experiments.train import train
from runs import DECISIONS, ENV, LEARNERS, check_run, home, settings


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
