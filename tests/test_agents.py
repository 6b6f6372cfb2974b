"""Every agent through the registry, in every family that it serves: a new one is covered without a change here."""

import json
import re
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from stable_baselines3.common.evaluation import evaluate_policy

from conftest import variants, words
from kd_gym import KDGymError
from kd_gym.agents.heuristics import SCHEDULES
from kd_gym.agents.protocol import AGENTS, Controller, agent_class, make_controller
from kd_gym.agents.sb3 import DQNAgent, TD3Agent
from kd_gym.envs.registration import FAMILIES
from kd_gym.envs.sb3 import SB3VecEnv
from kd_gym.experiments.score import play
from kd_gym.experiments.setup import EnvSpec, agent_for, env_arguments

SPECS = {family: EnvSpec(f"{family}-SST2", backend="tiny") for family in FAMILIES}
TINY = SPECS["KnowledgeSelect"]
KNOWLEDGE = TINY.lab().recipe.process.knowledge
DECISIONS = TINY.make().family.decisions
KINDS = Controller.actions
OWN = "examples.custom_agent:RandomSearch"
OFF_POLICY = {"sac", "td3", "dqn"}


def kinds_of(family):
    """The action kinds that a family has."""
    return get_args(env_arguments(family)["action"].annotation)


def arguments_of(name, family):
    """What may stand behind the colon of a registered name that needs an argument."""
    labels = SPECS[family].family.labels
    weights = ",".join(str(i % 3) for i in range(1, len(labels) + 1))
    return {"static": [weights], "single": labels, "schedule": SCHEDULES, "curriculum": ["", "back"]}.get(name, [""])


def served(name, family, **config):
    """The env as an agent wants it, or None where it does not serve it."""
    try:
        return agent_for(name, SPECS[family].with_config(**config))[2]
    except KDGymError:
        return None


SERVED = [
    (name, family, spec)
    for name in AGENTS.names()
    for family in FAMILIES
    for kind in kinds_of(family)
    if (spec := served(name, family, action=kind))
]
EVERY = [
    pytest.param(full, spec, id=f"{full}-{family}-{spec.config['action']}")
    for name, family, spec in SERVED
    for full in (f"{name}:{argument}" if argument else name for argument in arguments_of(name, family))
]
# one env of each agent's preferred action kind in each family, of agents that look at nothing but observations
PREFERRED = [
    pytest.param(f"{name}:{argument}" if argument else name, spec, id=f"{name}-{family}")
    for name, family, spec in SERVED
    if spec == served(name, family) and agent_class(name)[0].begin is Controller.begin
    for argument in list(arguments_of(name, family))[:1]
]
# learning takes long: by default in one family each
LEARNERS = [
    pytest.param(
        name,
        spec,
        id=f"{name}-{family}-{spec.config['action']}",
        marks=[pytest.mark.slow] * (family != next(f for n, f, _ in SERVED if n == name)),
    )
    for name, family, spec in SERVED
    if agent_class(name)[0].learns
]


def make(name, kind="weights", **kwargs):
    return make_controller(name, TINY.with_config(action=kind).make(), **kwargs)


def weights_of(controller, progress=0.0):
    """What an action of a weights controller sets, by knowledge type."""
    observation = np.full(controller.observation_space.shape, 0.5, np.float32)
    observation[0] = progress
    action, _ = controller.predict(observation)
    env = TINY.make()
    return dict(zip(KNOWLEDGE, env.family.decide([np.asarray(action)], env.episodes).shown[0].tolist(), strict=True))


def each(actions):
    """The actions of a batch one by one."""
    if isinstance(actions, dict):
        return [dict(zip(actions, row, strict=True)) for row in zip(*actions.values(), strict=True)]
    return list(actions)


def numbers(action):
    """An action as one vector."""
    return np.concatenate(
        [np.ravel(part) for part in action.values()] if isinstance(action, dict) else [np.ravel(action)]
    )


@pytest.mark.parametrize(("name", "spec"), EVERY)
def test_every_agent_predicts_legal_actions_for_one_and_for_a_batch(name, spec):
    env = spec.make()
    controller = make_controller(name, env, seed=3)
    env.reset(seed=0)
    controller.begin(env)
    env.observation_space.seed(0)
    observations = np.stack([env.observation_space.sample() for _ in range(4)])
    for deterministic in (True, False):
        action, _ = controller.predict(observations[0], None, np.ones(1, bool), deterministic)
        assert env.action_space.contains(action if np.ndim(action) or isinstance(action, dict) else np.int64(action))
        actions, _ = controller.predict(observations, None, np.ones(4, bool), deterministic)
        assert len(each(actions)) == 4
        assert all(env.action_space.contains(a) for a in each(actions))
    batch, _ = controller.predict(observations, deterministic=True)
    for row, action in zip(observations, each(batch), strict=True):
        assert numbers(controller.predict(row, deterministic=True)[0]) == pytest.approx(numbers(action), abs=1e-6)
    assert controller.flops >= 0
    assert controller.cost(3) >= 3 * controller.flops


@pytest.mark.parametrize(("name", "spec"), PREFERRED)
def test_stable_baselines_evaluates_every_agent(name, spec):
    face = SB3VecEnv(spec.make_vec(2))
    face.seed(5)
    env = spec.make()
    returns, lengths = evaluate_policy(
        make_controller(name, env), face, n_eval_episodes=2, return_episode_rewards=True, warn=False
    )
    assert lengths == [env.family.decisions] * 2
    assert np.isfinite(returns).all()


@pytest.mark.parametrize(("name", "family"), [(n, f) for n in AGENTS.names() for f in FAMILIES])
def test_an_action_kind_that_an_agent_cannot_take_is_one_clear_line(name, family):
    cls, _ = agent_class(name)
    if not served(name, family):
        fitting = [f"{other}-*" for other in FAMILIES if served(name, other)]
        with pytest.raises(KDGymError) as caught:
            agent_for(name, SPECS[family])
        assert str(caught.value).startswith(f"{cls.__name__} does not serve {SPECS[family].id}; it fits ")
        assert sorted(str(caught.value).partition("it fits ")[2].split(", ")) == sorted(fitting)
        return
    valid = [kind for kind in cls.actions if kind in kinds_of(family)]
    assert agent_for(name, SPECS[family])[2].config["action"] == valid[0]
    for kind in set(KINDS) - set(valid):
        with pytest.raises(KDGymError, match=f"{cls.__name__} takes no '{kind}' actions; it takes ") as caught:
            agent_for(name, SPECS[family].with_config(action=kind))
        assert "\n" not in str(caught.value)
    for option, value in cls.options.items():
        if option in env_arguments(family):
            with pytest.raises(KDGymError, match=re.escape(f"{cls.__name__} needs {option}={value!r}, not 'other'")):
                agent_for(name, SPECS[family].with_config(**{option: "other"}))


def test_what_an_agent_cannot_do_with_an_option_is_one_clear_line():
    candidates = SPECS["SamplePriority"].with_config(granularity="instance").make()
    with pytest.raises(KDGymError, match="Static sets weights by name; this env's actions are scores of candidates"):
        make_controller("static:1,2", candidates)
    bits = SPECS["TeacherWeight"].with_config(action="multi", granularity="instance").make()
    with pytest.raises(KDGymError, match="PPOAgent takes no matrices of bits; use action='weights'"):
        make_controller("ppo", bits)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pppo", "did you mean 'ppo'"),
        ("single:respons", "unknown weight 'respons': did you mean 'response'"),
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


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        pytest.param(spec, options, id=f"{family}-{words(options)}")
        for family, spec in SPECS.items()
        for options in variants(spec.id)
        if options["action"] == "weights"
    ],
)
def test_uniform_sets_in_every_family_what_holds_before_the_first_decision(spec, options):
    env = spec.with_config(**options).make()
    seen, before = env.reset(seed=0)
    info = env.step(make_controller("uniform", env).predict(seen)[0])[4]
    assert info["control"] == pytest.approx(before["control"])


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
    env = next(spec for family, spec in SPECS.items() if kind in kinds_of(family)).with_config(action=kind).make()
    env.observation_space.seed(1)
    observations = np.stack([env.observation_space.sample() for _ in range(40)])

    def drawn(seed, rows):
        return np.stack([numbers(a) for a in each(make_controller("random", env, seed=seed).predict(rows)[0])])

    actions = drawn(1, observations)
    assert np.array_equal(drawn(1, observations[::-1])[::-1], actions)  # whatever was asked before
    assert not np.array_equal(drawn(2, observations), actions)
    assert len(np.unique(actions, axis=0)) > 2
    assert np.array_equal(drawn(1, observations[[0, 0]]), actions[[0, 0]])


def test_an_episode_of_dict_actions_is_kept_as_json():
    env = SPECS["JointControl"].with_config(action="dict").make()
    episode = play(env, make_controller("random", env), 1)
    assert json.loads(json.dumps(episode.actions)) == episode.actions
    assert [set(action) for action in episode.actions] == [set(env.action_space)] * env.family.decisions


# ---------------------------------------------------------------------- learning agents


def trained(name, spec, folder, episodes=8, students=2):
    env = spec.make_vec(students)
    controller = make_controller(name, spec.make(), seed=1)
    controller.learn(env, episodes * env.family.decisions, folder)
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


@pytest.mark.parametrize(("name", "spec"), [*LEARNERS, pytest.param(OWN, TINY, id="own")])
def test_a_saved_agent_is_loaded_whole_without_pickle(name, spec, tmp_path):
    controller, env = trained(name, spec, tmp_path / "events")
    decisions = env.family.decisions
    saved = tmp_path / "saved"
    saved.mkdir()
    controller.save(saved)
    for file in saved.rglob("*"):
        assert file.suffix in (".safetensors", ".json")
        if file.suffix == ".json":
            json.loads(file.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
        else:
            assert load_file(file)
    loaded = make_controller(name, spec.make(), seed=9)
    env.single_observation_space.seed(2)
    observations = np.stack([env.single_observation_space.sample() for _ in range(8)])
    loaded.load(saved)
    assert np.array_equal(loaded.predict(observations)[0], controller.predict(observations)[0])
    if hasattr(controller, "model"):
        assert loaded.model.num_timesteps == controller.model.num_timesteps == 8 * decisions
        assert_equal_state(controller.model.get_parameters(), loaded.model.get_parameters())
        for variable in controller.model._get_torch_save_params()[1]:
            assert_equal_state(getattr(controller.model, variable), getattr(loaded.model, variable))
        old, new = getattr(controller.model, "replay_buffer", None), getattr(loaded.model, "replay_buffer", None)
        assert (old is not None) == (name in OFF_POLICY)
        if old is not None:
            assert (old.pos, old.full) == (new.pos, new.full) == (4 * decisions, False)
            for field in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
                assert np.array_equal(getattr(old, field)[: old.pos], getattr(new, field)[: new.pos])
            assert old.dones[: old.pos].sum() == 8
    loaded.learn(env, 4 * decisions, tmp_path / "more")  # what is loaded also goes on learning
    if hasattr(controller, "model"):
        assert loaded.model.num_timesteps == 12 * decisions


@pytest.mark.parametrize(("name", "spec"), LEARNERS)
def test_learning_changes_what_is_saved(name, spec, tmp_path):
    tensors = []
    for when, controller in (
        ("before", make_controller(name, spec.make(), seed=1)),
        ("after", trained(name, spec, tmp_path / "events")[0]),
    ):
        controller.save(tmp_path / when)
        tensors.append(load_file(tmp_path / when / "agent.safetensors"))
    before, after = tensors
    assert any(not np.array_equal(value, after[key]) for key, value in before.items())


def test_the_target_of_dqn_follows_within_a_short_training(tmp_path):
    assert isinstance(make("dqn", "choice"), DQNAgent)
    before = make("dqn", "choice", seed=1).model.q_net_target.state_dict()
    after = trained("dqn", TINY.with_config(action="choice"), tmp_path)[0].model.q_net_target.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_td3_explores_after_its_random_actions(tmp_path):
    controller, _ = trained("td3", TINY, tmp_path)
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
    assert np.array_equal(controller.predict(np.zeros(controller.observation_space.shape, np.float32))[0], best)
