"""Controllers that train the teacher: their gradients against autograd through the unrolled update, and their runs."""

import functools
import math
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kd_gym.agents import feedback
from kd_gym.agents.ikd import IKD, IKDConfig
from kd_gym.agents.lgtm import LGTM, LGTMConfig
from kd_gym.agents.meta_distil import MetaDistil, MetaDistilConfig
from kd_gym.agents.protocol import AGENTS, agent_class, make_controller
from kd_gym.backend.meta import look_ahead, norm, sgd_ahead, slope, times
from kd_gym.backend.state import Context
from kd_gym.backend.terms import Control
from kd_gym.envs.recipes import LABELS_AND_TEACHERS
from kd_gym.errors import KDGymError
from kd_gym.experiments.evaluate import evaluate
from kd_gym.experiments.score import play
from kd_gym.experiments.setup import EnvSpec, agent_for

TRAINERS = [name for name in AGENTS.names() if issubclass(agent_class(name)[0], feedback.Feedback)]
HALF = Control(torch.tensor([[0.5, 0.5]], dtype=torch.float64))


@pytest.fixture
def process(make_process):
    """One student and its live teacher in float64, some updates into a run."""
    made = make_process(dtype=torch.float64, live=True, knowledge=LABELS_AND_TEACHERS, attention="plain")
    made.reset([3], [Context()])
    made.advance(HALF, 4)
    return made


def held_out(process):
    """A batch that the student is not trained on."""
    rows = torch.arange(8)
    return process.train.batch(rows.unsqueeze(0)), process.train.labels[rows]


def unrolled(process, ahead, control=HALF, held=None):
    """d held-out loss / d teacher by autograd through theta' = theta - pull * gradient, with `pull` held constant.

    The gradient's own value is taken out again, so that theta' is where `ahead` is whatever the optimiser did.
    """
    tokens, labels = process.coming()
    teacher = process.lessons.matched(process.live(tokens))
    student = {name: value.detach().requires_grad_() for name, value in process.params.items()}
    loss = process.each(student, process.encode(student, tokens, plain=True), [teacher], labels, control).mean()
    own = torch.autograd.grad(loss, list(student.values()), create_graph=True, materialize_grads=True)
    moved = {
        name: ahead.params[name] - ahead.pull[name] * (g - g.detach()) for name, g in zip(student, own, strict=True)
    }
    tokens, labels = held or held_out(process)
    exam = F.cross_entropy(process.encode(moved, tokens, plain=True).logits[0], labels)
    return feedback.gradient(exam, process.live.params)


def relative(found, expected):
    with torch.no_grad():
        return float(norm({name: found[name] - expected[name] for name in expected}) / norm(expected))


def meta_gradient(process, kind, radius=None):
    """d held-out loss / d teacher as the controllers take it, and the look-ahead that it is taken at."""
    lesson = feedback.Lesson(process, process.live, HALF)
    ahead = lesson.look_ahead() if kind == "adamw" else sgd_ahead(process.params, lesson.student_gradient(), 0.05)
    v = feedback.held_out_gradient(process, ahead.params, held_out(process))
    influence = lesson.influences(times(ahead.pull, v), radius).mean()
    return lesson.back([-pull for pull in lesson.at_outputs(influence)]), ahead


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_exact_meta_gradient_is_autograd_through_the_update(process, kind):
    found, ahead = meta_gradient(process, kind)
    assert norm(found) > 1e-9
    assert relative(found, unrolled(process, ahead)) < 1e-8


@pytest.mark.parametrize(("kind", "radius"), [("adamw", 0.01), ("sgd", 0.003)])
def test_finite_differences_are_near_the_exact_meta_gradient(process, kind, radius):
    exact, _ = meta_gradient(process, kind)
    near, _ = meta_gradient(process, kind, radius)
    assert 0 < relative(near, exact) < 1e-3


def test_the_look_ahead_is_the_students_coming_step(process):
    ahead = feedback.Lesson(process, process.live, HALF).look_ahead().params
    before = {name: value.detach().clone() for name, value in process.params.items()}
    process.advance(HALF, 1)
    assert relative(ahead, process.params) < 1e-12
    assert relative(before, process.params) > 1e-6


def test_the_pull_is_how_far_parameters_give_way_to_their_gradient(process):
    gradients = feedback.Lesson(process, process.live, HALF).student_gradient()
    rate, state, clip = process.learning_rate(), process.adam, min(1.0, 1 / float(norm(gradients)))
    clipped = {name: g * clip for name, g in gradients.items()}
    ahead = look_ahead(process.params, gradients, state, rate)
    assert clip < 1
    step = int(state.step[0]) + 1
    for name in ("1.up.weight", "classifier.bias"):
        square = 0.999 * state.square[name] + 0.001 * clipped[name].square()
        deviation = (square / (1 - 0.999**step)).sqrt() + 1e-8
        factor = float(rate[0]) * 0.1 / (1 - 0.9**step) * clip
        assert torch.allclose(ahead.pull[name], factor / deviation, rtol=1e-4)


def test_a_slope_is_the_change_along_a_direction():
    p = {"x": torch.tensor([[1.0, 2.0]], dtype=torch.float64)}
    direction = {"x": torch.tensor([[3.0, -1.0]], dtype=torch.float64)}
    each = lambda q: q["x"][0] ** 3  # noqa: E731
    expected = torch.tensor([9.0, -12.0], dtype=torch.float64)
    assert torch.allclose(slope(each, p, direction), expected)
    assert torch.allclose(slope(each, p, direction, 1e-4), expected, atol=1e-6)


def make(agent, seed=5, config=None, **env_config):
    """A trainer, its tiny env after reset, and both in hand of each other."""
    cls, _, spec = agent_for(agent, EnvSpec("KnowledgeSelect-SST2", backend="tiny", config=env_config))
    env = spec.make()
    controller = cls(env, config=config)
    env.reset(seed=seed)
    controller.begin(env)
    return controller, env


def test_faithful_lgtm_is_the_released_codes_formula():
    """grad_T aux - lr_T [grad_T L_T(theta_S+) - grad_T L_T(theta_S-)] / (2 eps), dropout off so that it can be written
    down: a plain derivation, with a copy of the student and torch's own AdamW.
    """
    config = LGTMConfig(mode="faithful", dropout=0.0, teacher_rate=0.01)
    controller, env = make("lgtm", config=config)
    env.step(controller.act(None))  # zero heads are no test
    process = env.episodes.process
    live, update = process.live, int(process.update[0])
    tokens, labels = process.coming()
    held_tokens, held_labels = controller.held.batch(update)
    control = env.family.decide([controller.act(None)], env.episodes).control

    def log_p(network, params, batch):
        return network(params, batch).log_softmax(-1)[0]

    def student(params, batch):
        return process.encode(params, batch, plain=True).logits

    def teacher(params, batch):
        return live.network(params, batch, feedback.keep, False, "float32").logits

    at = {name: value.detach().clone().requires_grad_() for name, value in process.params.items()}
    p_t = log_p(teacher, live.params, tokens).exp().detach()
    distilled = (p_t * (p_t.log() - log_p(student, at, tokens))).sum(-1).mean()
    distilled.backward()
    trained = [value for value in at.values() if value.grad is not None]
    total = math.sqrt(sum(float(value.grad.square().sum()) for value in trained))
    undecayed = [n for n in at if any(word in n for word in ("bias", "norm", "word", "position", "segment"))]
    groups = [
        {"params": [at[n] for n in at if at[n].grad is not None and (n in undecayed) == flat], "weight_decay": decay}
        for flat, decay in ((False, process.recipe.decay), (True, 0.0))
    ]
    copy = torch.optim.AdamW(groups, lr=float(process.learning_rate()[0]))
    for name, value in at.items():
        if value.grad is not None:
            value.grad *= min(1.0, process.recipe.clip / total)
            copy.state[value] = {
                "step": process.adam.step[0].clone(),
                "exp_avg": process.adam.mean[name].clone(),
                "exp_avg_sq": process.adam.square[name].clone(),
            }
    copy.step()
    for value in at.values():
        value.grad = None
    F.nll_loss(log_p(student, at, held_tokens), held_labels).backward()
    v = {name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in at.items()}
    eps = 0.01 / math.sqrt(sum(float(g.square().sum()) for g in v.values()))

    def teaching(shift):
        moved = {name: value.detach() + shift * eps * v[name] for name, value in process.params.items()}
        p_s = log_p(student, moved, tokens).exp().detach()
        log_t = log_p(teacher, live.params, tokens)
        loss = 0.4 * (p_s * (p_s.log() - log_t)).sum(-1).mean() + 0.6 * F.nll_loss(log_t, labels[0])
        return feedback.gradient(loss, live.params)

    aux, plus, minus = teaching(0), teaching(1), teaching(-1)
    rate = 0.01 * (1 - update / process.recipe.horizon)
    influence = {name: (plus[name] - minus[name]) / (2 * eps) for name in plus}
    expected = {name: aux[name] - rate * influence[name] for name in aux}
    found = controller.teacher_gradient(process, live, control, update)
    assert relative(found.values, expected) < 1e-4
    assert found.told["natural_ratio"] == pytest.approx(float(rate * norm(influence) / norm(aux)), rel=0.02)


def test_ikd_steps_along_the_exam_and_its_own_loss():
    controller, env = make("ikd", config=IKDConfig(feedback=1.0))
    process = env.episodes.process
    control = env.family.decide([controller.act(None)], env.episodes).control
    found = controller.teacher_gradient(process, process.live, control, 0).values
    lesson = feedback.Lesson(process, process.live, control)
    ahead, held = lesson.look_ahead(), controller.held.batch(0)
    v = feedback.held_out_gradient(process, ahead.params, held)
    exam = lesson.back([-g for g in lesson.at_outputs(lesson.influences(times(ahead.pull, v)).mean())])
    along = sum(float((found[name] * exam[name]).sum()) for name in exam) / float(norm(found) * norm(exam))
    assert along == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ikd", IKDConfig(feedback=1.0)),
        ("lgtm", LGTMConfig(influence=1e6)),
        ("meta-distil", MetaDistilConfig(pilot_rate=0.01)),
    ],
)
def test_controllers_step_down_the_held_out_loss_of_their_next_student(name, config):
    """Each one's gradient, as far as it is of the student's feedback, against autograd through the unrolled update."""
    controller, env = make(name, config=config)
    env.step(controller.act(None))
    process = env.episodes.process
    control = env.family.decide([controller.act(None)], env.episodes).control
    lesson = feedback.Lesson(process, process.live, control)
    ahead = lesson.look_ahead() if name != "meta-distil" else sgd_ahead(
        process.params, lesson.student_gradient(), config.pilot_rate
    )  # fmt: skip
    expected = unrolled(process, ahead, control, controller.held.batch(int(process.update[0])))
    found = controller.teacher_gradient(process, process.live, control, int(process.update[0])).values
    along = sum(float((found[key] * expected[key]).sum().detach()) for key in found)
    assert along / float(norm(found) * norm(expected)) > 0.99


def test_ikds_student_takes_its_step_before_the_teacher_does():
    controller, env = make("ikd")
    process = env.episodes.process
    start = {name: value.detach().clone() for name, value in process.live.params.items()}
    control = env.family.decide([controller.act(None)], env.episodes).control
    process.advance(control, 1)
    assert all(torch.equal(process.live.params[name], value) for name, value in start.items())
    process.advance(control, 1)
    assert any(not torch.equal(process.live.params[name], value) for name, value in start.items())


def test_a_step_of_the_teacher_along_the_meta_gradient_helps_its_student():
    """The held-out loss after the student's step is lower where the teacher made one first, and higher where it made
    the opposite one.
    """
    controller, env = make("ikd")
    env.step(controller.act(None))
    process = env.episodes.process
    control = env.family.decide([controller.act(None)], env.episodes).control
    lesson = feedback.Lesson(process, process.live, control)
    ahead, held = lesson.look_ahead(), controller.held.batch(7)
    v = feedback.held_out_gradient(process, ahead.params, held)
    helps = lesson.back(lesson.at_outputs(lesson.influences(times(ahead.pull, v)).mean()))

    def after(sign):
        state = process.snapshot()
        with torch.no_grad():
            for key, value in process.live.params.items():
                value += sign * 0.02 / norm(helps) * helps[key]
        params = feedback.Lesson(process, process.live, control).look_ahead().params
        process.restore(state)
        return float(F.cross_entropy(process.encode(params, held[0]).logits[0], held[1]).double())

    assert after(1) < after(-1)


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_play_whole_episodes_again_and_again(name):
    _, _, spec = agent_for(name, EnvSpec("KnowledgeSelect-SST2", backend="tiny"))
    env = spec.make()
    controller = agent_class(name)[0](env)
    one, other = play(env, controller, 10**9), play(env, controller, 10**9)
    assert one.scores == other.scores
    assert one.actions == other.actions
    assert one.controller_flops == other.controller_flops > 0
    assert one.notes["skipped"] == 0
    assert len(one.notes["gradient_norm"]) == spec.family.recipe.process.horizon
    assert not one.failure


@pytest.mark.parametrize("name", TRAINERS)
def test_a_gradient_that_is_not_finite_is_left_out_and_three_end_the_episode(name, monkeypatch):
    controller, env = make(name)
    process = env.episodes.process
    honest, bad = controller.teacher_gradient, {1, 2, 5, 13, 14, 15}

    def sometimes(*args):
        found = honest(*args)
        spoilt = {key: value * np.nan for key, value in found.values.items()}
        return found._replace(values=spoilt) if args[-1] in bad else found

    monkeypatch.setattr(controller, "teacher_gradient", sometimes)
    info, over = {}, False
    while not over:
        _, _, over, _, info = env.step(controller.act(None))
    assert controller.notes()["skipped"] == len(bad)
    assert info["failure"] == "the teacher's gradient was not finite 3 times in a row"
    assert all(value.isfinite().all() for value in process.live.params.values())
    assert all(value.isfinite().all() for value in process.params.values())


def test_a_trainer_says_what_it_needs_of_an_env_made_by_hand():
    env = gym.make("KnowledgeSelect-SST2-v0", backend="tiny").unwrapped
    with pytest.raises(KDGymError, match="IKD needs teacher='live', not 'stored'"):
        IKD(env)
    with pytest.raises(KDGymError, match="LGTM needs teacher='untuned', not 'live'"):
        LGTM(gym.make("KnowledgeSelect-SST2-v0", backend="tiny", teacher="live").unwrapped)


def test_untuned_teachers_and_their_students_start_without_an_opinion():
    env = gym.make("KnowledgeSelect-SST2-v0", backend="tiny", teacher="untuned").unwrapped
    env.reset(seed=1)
    process = env.episodes.process
    batch = process.peek()
    assert not batch.teachers[0].logits.any()
    assert not batch.logits.any()
    assert torch.equal(process.scale, torch.ones_like(process.scale))


def test_a_live_teachers_state_is_a_part_of_the_snapshot():
    controller, env = make("meta-distil")
    assert isinstance(controller, MetaDistil)
    process = env.episodes.process
    control = env.family.decide([controller.act(None)], env.episodes).control
    process.advance(control, 2)
    state = process.snapshot()
    copy = process.fork()
    process.advance(control, 1)
    moved = process.live.params["0.q.weight"]
    assert not torch.equal(moved, state.tensors["live.param.0.q.weight"])
    assert torch.equal(copy.live.params["0.q.weight"], state.tensors["live.param.0.q.weight"])
    after = process.snapshot()
    process.restore(state)
    process.advance(control, 1)
    assert all(torch.equal(value, process.snapshot().tensors[name]) for name, value in after.tensors.items())


def test_influences_are_products_of_each_samples_gradient_and_the_held_out_one():
    """LGTM's I_i, which `lgtm-priority` scores candidates by: one pass in forward mode against a gradient for each."""
    _, _, spec = agent_for("lgtm-priority", EnvSpec("SamplePriority-SST2", backend="tiny"))
    env = spec.make()
    controller = agent_class("lgtm-priority")[0](env)
    seen, _ = env.reset(seed=7)
    controller.begin(env)
    env.step(env.action_space.sample())
    scores = (controller.act(seen) + 1) / 2
    process, pool = env.episodes.process, env.family.pool
    batch, control = process.peek(pool), env.family.uniform(1)
    tokens, labels = process.coming(pool)
    held, answers = controller._held.batch(1)
    parameters = list(process.params.values())
    loss = F.cross_entropy(process.encode(process.params, held).logits[0], answers)
    v = torch.autograd.grad(loss, parameters, materialize_grads=True)
    losses = process.each(process.params, process.encode(process.params, tokens), batch.teachers, labels, control)[0]
    influences = []
    for one in losses:
        own = torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True)
        influences.append(sum(float((a * b).sum()) for a, b in zip(own, v, strict=True)))
    expected = np.maximum(influences, 0)
    assert 0 < (expected > 0).sum() < pool
    assert scores == pytest.approx(expected / expected.max(), abs=1e-3)


def test_settings_stand_behind_the_name():
    env = make("lgtm")[1]
    chosen = make_controller("lgtm:mode=faithful,radius=0.02,teacher_rate=1", env).config
    assert chosen == LGTMConfig(mode="faithful", radius=0.02, teacher_rate=1.0)
    assert make_controller("lgtm:radius=None", env).config == LGTMConfig()
    for text, said in (
        ("mod=faithful", "unknown setting 'mod': did you mean 'mode'?"),
        ("mode=true", "mode cannot be 'true': give corrected or faithful"),
        ("radius=far", "radius cannot be 'far': give float or NoneType"),
    ):
        with pytest.raises(KDGymError, match=re.escape(said)):
            make_controller(f"lgtm:{text}", env)


def test_a_hook_ends_with_its_episode():
    controller, env = make("ikd")
    found = []
    for hooked in (False, True, False):
        env.reset(seed=5)
        if hooked:
            controller.begin(env)
        for _ in range(3):
            env.step(np.zeros(2, np.float32))
        found.append(env.episodes.process.live.params["0.q.weight"].detach().clone())
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", ["dml", "takd", "rco", "meta-distil"])
def test_an_episode_can_be_forked_whoever_teaches(name):
    controller, env = make(name)
    env.step(controller.act(None))
    action = np.asarray(controller.act(None))
    env.episodes.process.hook = None  # a fork has none
    other = env.fork()
    mine, its = env.step(action), other.step(action)
    assert np.array_equal(mine[0], its[0])
    assert mine[1] == its[1]
    assert mine[-1] == its[-1]
    other.step(action)
    assert int(env.episodes.process.update[0]) + env.family.updates == int(other.episodes.process.update[0])


@pytest.mark.parametrize("name", [n for n in AGENTS.names() if "begin" in vars(agent_class(n)[0])] + TRAINERS)
def test_who_works_inside_an_env_says_so_where_nobody_began(name):
    family = "SamplePriority" if "priority" in name else "KnowledgeSelect"
    env = agent_for(name, EnvSpec(f"{family}-SST2", backend="tiny"))[2].make()
    seen, _ = env.reset(seed=1)
    with pytest.raises(KDGymError, match=r"call begin\(env\)"):
        make_controller(name, env).act(seen)


def test_a_hand_built_env_must_have_what_a_controller_needs():
    make_live = functools.partial(gym.make, "KnowledgeSelect-SST2-v0", backend="tiny", teacher="live")
    with pytest.raises(KDGymError, match="MetaDistil needs knowledge='hard,soft-mse,cls-skip', not 'hard,response,"):
        MetaDistil(make_live().unwrapped)
    with pytest.raises(KDGymError, match=re.escape("MetaDistil needs tau=5.0, not 4.0")):
        MetaDistil(make_live(knowledge="hard,soft-mse,cls-skip").unwrapped)


def test_who_looks_at_a_live_teachers_batch_pays_for_its_own_pass():
    flops = []
    for looks in (0, 1):
        env = gym.make("KnowledgeSelect-SST2-v0", backend="tiny", teacher="live").unwrapped
        env.reset(seed=1)
        for _ in range(looks):
            env.episodes.process.peek()
        env.step(np.zeros(4, np.float32))
        flops.append((env.cost["student_flops"], env.cost["teacher_flops"]))
    assert flops[1][0] > flops[0][0]
    assert flops[1][1] > flops[0][1] > 0


class Bare:
    """An agent of one's own with the protocol alone."""

    def __init__(self, env, **kwargs):
        self.space = env.action_space

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.zeros(self.space.shape, np.float32), state


def test_an_agent_with_predict_alone_stands_beside_one_that_reads_the_reward_split():
    comparison = evaluate(["test_feedback:Bare", "greedy"], EnvSpec("KnowledgeSelect-SST2", backend="tiny"), 1)
    assert [row.name for row in comparison.rows] == ["test_feedback:Bare", "greedy", "uniform+reward"]
