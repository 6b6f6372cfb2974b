"""Every agent through the registry: a new one is covered without a change here."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from stable_baselines3.common.evaluation import evaluate_policy

from kd_gym import KDGymError
from kd_gym.agents.heuristics import SCHEDULES
from kd_gym.agents.protocol import AGENTS, agent_class, make_controller
from kd_gym.agents.sb3 import DQNAgent, TD3Agent
from kd_gym.envs.sb3 import SB3VecEnv
from kd_gym.experiments.setup import EnvSpec, agent_for

TINY = EnvSpec("KnowledgeSelect-SST2", backend="tiny")
KNOWLEDGE = TINY.lab().recipe.process.knowledge
DECISIONS = TINY.make().family.decisions
KINDS = ("weights", "multi", "choice")
# registered names that need an argument, with the arguments to try
ARGUMENTS = {"static": ["1,2,0,0.5"], "single": list(KNOWLEDGE), "schedule": list(SCHEDULES)}
NAMES = [f"{name}:{a}" if a else name for name in AGENTS.names() for a in ARGUMENTS.get(name, [""])]
EVERY = [(name, kind) for name in NAMES for kind in agent_class(name)[0].actions]
LEARNERS = [(name, kind) for name, kind in EVERY if agent_class(name)[0].learns]
OWN = "examples.custom_agent:RandomSearch"
OFF_POLICY = {"sac", "td3", "dqn"}


def make(name, kind="weights", **kwargs):
    return make_controller(name, TINY.with_config(action=kind).make(), **kwargs)


def weights_of(controller, progress=0.0):
    """What an action of a weights controller sets, by knowledge type."""
    observation = np.full(controller.observation_space.shape, 0.5, np.float32)
    observation[0] = progress
    action, _ = controller.predict(observation)
    env = TINY.make()
    return dict(zip(KNOWLEDGE, env.family.decide([np.asarray(action)], env.episodes).shown[0].tolist(), strict=True))


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_agent_predicts_legal_actions_for_one_and_for_a_batch(name, kind):
    env = TINY.with_config(action=kind).make()
    controller = make_controller(name, env, seed=3)
    env.observation_space.seed(0)
    observations = np.stack([env.observation_space.sample() for _ in range(6)])
    for deterministic in (True, False):
        action, _ = controller.predict(observations[0], None, np.ones(1, bool), deterministic)
        assert env.family.action_space.contains(action if np.ndim(action) else np.int64(action))
        actions, _ = controller.predict(observations, None, np.ones(6, bool), deterministic)
        assert len(actions) == 6
        assert all(env.family.action_space.contains(a) for a in actions)
    alone = np.stack([controller.predict(row, deterministic=True)[0] for row in observations])
    batch, _ = controller.predict(observations, deterministic=True)
    assert np.asarray(batch) == pytest.approx(alone, abs=1e-6)
    assert controller.flops >= 0


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in EVERY if agent_class(n)[0].actions[0] == k])
def test_stable_baselines_evaluates_every_agent(name, kind):
    spec = TINY.with_config(action=kind)
    face = SB3VecEnv(spec.make_vec(2))
    face.seed(5)
    returns, lengths = evaluate_policy(
        make(name, kind), face, n_eval_episodes=2, return_episode_rewards=True, warn=False
    )
    assert lengths == [DECISIONS] * 2
    assert np.isfinite(returns).all()


@pytest.mark.parametrize("name", [n for n in AGENTS.names() if set(agent_class(n)[0].actions) < set(KINDS)])
def test_an_action_kind_that_an_agent_cannot_take_is_one_clear_line(name):
    cls, _ = agent_class(name)
    for kind in set(KINDS) - set(cls.actions):
        with pytest.raises(KDGymError, match=f"{cls.__name__} takes no '{kind}' actions; it takes ") as caught:
            agent_for(name, TINY.with_config(action=kind))
        assert "\n" not in str(caught.value)
    assert agent_for(name, TINY)[2].config["action"] == cls.actions[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pppo", "did you mean 'ppo'"),
        ("single:respons", "unknown knowledge type 'respons': did you mean 'response'"),
        ("schedule:aneal", "unknown schedule 'aneal': did you mean 'anneal'"),
        ("static:1,2", "static takes 4 weights for hard, response, feature, relation: static:1,1,1,1"),
        ("static:1,x,0,0", "static takes 4 weights"),
        ("static:0,0,0,0", "static takes 4 weights"),
        ("static:1,-1,0,0", "static takes 4 weights"),
        ("static:1,nan,0,0", "static takes 4 weights"),
        ("json:JSONDecoder", "is no controller class: it needs predict"),
        ("examples.custom_agent:Missing", "cannot load 'examples.custom_agent:Missing'"),
    ],
)
def test_a_wrong_name_or_argument_is_one_clear_line(name, said):
    with pytest.raises(KDGymError) as caught:
        make(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- heuristics


def test_heuristics_set_what_they_say():
    even = dict.fromkeys(KNOWLEDGE, 1 / len(KNOWLEDGE))
    assert weights_of(make("uniform")) == pytest.approx(even)
    fixed = dict(zip(KNOWLEDGE, (0.25, 0.5, 0.0, 0.25), strict=True))
    assert weights_of(make("static:1,2,0,1")) == pytest.approx(fixed)
    for name in KNOWLEDGE:
        found = weights_of(make(f"single:{name}"))
        assert found == {other: float(other == name) for other in KNOWLEDGE}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_follow_progress(name):
    controller = make(f"schedule:{name}")
    for progress in (0.0, 0.2, 0.49, 0.5, 0.8, 1.0):
        expected = SCHEDULES[name](progress)
        found = weights_of(controller, progress)
        assert sum(expected.values()) == pytest.approx(1)
        assert found == pytest.approx({k: expected.get(k, 0.0) for k in KNOWLEDGE}, abs=1e-6)
    assert weights_of(controller, 0.0) != weights_of(controller, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_random_is_a_function_of_seed_and_observation(kind):
    space = TINY.make().observation_space
    space.seed(1)
    observations = np.stack([space.sample() for _ in range(40)])
    first, again, other = make("random", kind, seed=1), make("random", kind, seed=1), make("random", kind, seed=2)
    actions = first.predict(observations)[0]
    assert np.array_equal(again.predict(observations[::-1])[0][::-1], actions)  # whatever was asked before
    assert not np.array_equal(other.predict(observations)[0], actions)
    assert len(np.unique(actions, axis=0)) > 2
    assert np.array_equal(first.predict(np.stack([observations[0]] * 2))[0], np.stack([actions[0]] * 2))


# ---------------------------------------------------------------------- learning agents


def trained(name, kind, folder, episodes=8, students=2):
    controller = make(name, kind, seed=1)
    env = TINY.with_config(action=kind).make_vec(students)
    controller.learn(env, episodes * DECISIONS, folder)
    return controller, env


def assert_equal_state(one, other):
    """Nested dicts and lists of tensors and numbers; JSON's lists stand for tuples."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_equal_state(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal_state(a, b)
    else:
        assert one == other


@pytest.mark.parametrize(("name", "kind"), [*LEARNERS, (OWN, "weights")])
def test_a_saved_agent_is_loaded_whole_without_pickle(name, kind, tmp_path):
    controller, env = trained(name, kind, tmp_path / "events")
    saved = tmp_path / "saved"
    saved.mkdir()
    controller.save(saved)
    for file in saved.rglob("*"):
        assert file.suffix in (".safetensors", ".json")
        if file.suffix == ".json":
            json.loads(file.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
        else:
            assert load_file(file)
    loaded = make(name, kind, seed=9)
    env.single_observation_space.seed(2)
    observations = np.stack([env.single_observation_space.sample() for _ in range(8)])
    loaded.load(saved)
    assert np.array_equal(loaded.predict(observations)[0], controller.predict(observations)[0])
    if hasattr(controller, "model"):
        assert loaded.model.num_timesteps == controller.model.num_timesteps == 8 * DECISIONS
        assert_equal_state(controller.model.get_parameters(), loaded.model.get_parameters())
        for variable in controller.model._get_torch_save_params()[1]:
            assert_equal_state(getattr(controller.model, variable), getattr(loaded.model, variable))
        old, new = getattr(controller.model, "replay_buffer", None), getattr(loaded.model, "replay_buffer", None)
        assert (old is not None) == (name in OFF_POLICY)
        if old is not None:
            assert (old.pos, old.full) == (new.pos, new.full) == (4 * DECISIONS, False)
            for field in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
                assert np.array_equal(getattr(old, field)[: old.pos], getattr(new, field)[: new.pos])
            assert old.dones[: old.pos].sum() == 8
    loaded.learn(env, 4 * DECISIONS, tmp_path / "more")  # what is loaded also goes on learning
    if hasattr(controller, "model"):
        assert loaded.model.num_timesteps == 12 * DECISIONS


@pytest.mark.parametrize(("name", "kind"), LEARNERS)
def test_learning_changes_the_policy(name, kind, tmp_path):
    before = make(name, kind, seed=1).model.policy.state_dict()
    after = trained(name, kind, tmp_path)[0].model.policy.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_the_target_of_dqn_follows_within_a_short_training(tmp_path):
    assert isinstance(make("dqn", "choice"), DQNAgent)
    before = make("dqn", "choice", seed=1).model.q_net_target.state_dict()
    after = trained("dqn", "choice", tmp_path)[0].model.q_net_target.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_td3_explores_after_its_random_actions(tmp_path):
    controller, _ = trained("td3", "weights", tmp_path)
    assert isinstance(controller, TD3Agent)
    assert controller.model.action_noise is not None


def test_random_search_keeps_the_weights_with_the_best_return(tmp_path):
    class Recorder:
        """A vector env whose episodes of two steps return how near the first weight is to 0.3."""

        num_envs, action_space = 3, TINY.make_vec(3).action_space

        def __init__(self):
            self.tried, self.step_count = [], 0

        def reset(self, seed):
            assert len(set(seed)) == 3

        def step(self, actions):
            self.step_count += 1
            over = np.full(3, self.step_count % 2 == 0)
            if over[0]:
                self.tried.extend(actions.copy())
            return None, -np.abs(actions[:, 0] - 0.3), over, np.zeros(3, bool), {}

    env = Recorder()
    search, _ = agent_class(OWN)
    controller = search(TINY.make(), seed=0, config=search.Config(width=0.5))
    controller.learn(env, 3 * 2 * 10, tmp_path)
    assert len(env.tried) == controller.episodes == 30
    assert np.abs(env.tried).max() <= 0.5
    best = min(env.tried, key=lambda w: abs(w[0] - 0.3))
    assert np.array_equal(controller.predict(np.zeros(20, np.float32))[0], best)
