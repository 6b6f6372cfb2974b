"""Which samples `SamplePriority` trains on, by hand."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import variants, words
from families import INSTANCE, SAMPLES, after, same
from kd_gym import KDGymError
from kd_gym.backend.encoder import encode
from kd_gym.backend.sampling import Selection, choose, difficulties, quantile_scores
from kd_gym.backend.state import Context


def test_quantile_scores_are_products_of_the_weights_of_a_candidates_quantiles():
    measures = torch.tensor([[[0.1, 0.4, 0.2, 0.3], [5.0, 5.0, 1.0, 7.0]]])
    weights = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])
    # halves of the first measure: 0 and 2 are low; of the second: 2 and, first among equals, 0
    assert quantile_scores(measures, weights).tolist() == [[1 * 3, 2 * 5, 1 * 3, 2 * 5]]
    odd = quantile_scores(torch.arange(6.0)[None, None], torch.tensor([[[1.0, 2, 3, 4]]]))
    assert odd.tolist() == [[1, 1, 2, 3, 3, 4]]


def test_difficulties_are_those_of_their_definitions(make_process):
    process = make_process(2)
    process.reset([1, 2], [Context("noise", label_noise=0.4)] * 2)
    seen = process.peek(12)
    found = difficulties(seen.logits, seen.teachers[0], seen.labels)
    assert found.shape == (2, 3, 12)
    for n in range(2):
        for i in range(12):
            p, q = seen.teachers[0].logits[n, i].softmax(-1), seen.logits[n, i].softmax(-1)
            expected = [-(p * p.log()).sum(), -q[seen.labels[n, i]].log(), 0.5 * (p - q).abs().sum()]
            assert found[n, :, i].tolist() == pytest.approx([float(x) for x in expected], abs=1e-5)


SCORES = torch.tensor([[0.5, 0.0, 1.0, 0.25, 1.0, 0.25, 0.5, 0.1]])


def drawn(how, scores=SCORES, batch=3, keys=((1, 2),), **options):
    return choose(Selection(scores, scores.shape[1], how, **options), scores, batch, keys)


def test_top_takes_the_highest_and_weight_takes_all():
    places, weights = drawn("top")
    assert set(places[0, :2].tolist()) == {2, 4}
    assert places[0, 2] in (0, 6)
    assert weights.tolist() == [[1, 1, 1]]
    assert {int(drawn("top", keys=[(1, u)])[0][0, 2]) for u in range(20)} == {0, 6}  # equals take turns
    places, weights = drawn("weight", batch=8)
    assert places.tolist() == [list(range(8))]
    assert torch.allclose(weights, SCORES.double() / SCORES.double().mean())
    assert drawn("weight", 0 * SCORES, batch=8)[1].tolist() == [[1.0] * 8]


def test_draws_are_in_proportion_to_the_scores_and_without_replacement():
    count = 4000
    places, weights = drawn("sample", SCORES.expand(count, -1), keys=[(5, u) for u in range(count)])
    assert (weights == 1).all()
    assert all(len(set(row)) == 3 for row in places.tolist())
    p = (SCORES / SCORES.sum())[0].numpy()
    found = np.bincount(places[:, 0], minlength=8)  # the first of each draw
    assert found[1] == 0
    alive = p > 0
    assert ((found - count * p)[alive] ** 2 / (count * p)[alive]).sum() < 35  # chi-square of 6 degrees: p < 1e-5
    # the second one, given the first: those that are left, in proportion
    second = np.bincount(places[places[:, 0] == 2][:, 1], minlength=8)
    q = np.where(np.arange(8) == 2, 0, p) / (1 - p[2])
    assert second / second.sum() == pytest.approx(q, abs=0.05)
    assert set(drawn("sample", batch=8)[0][0, 7:].tolist()) == {1}  # what has no score comes last


def test_corrected_draws_weigh_the_inverse_of_their_probability():
    for u in range(20):
        places, weights = drawn("sample", keys=[(3, u)], correct=True)
        raw = 1 / (8 * (SCORES / SCORES.sum()).double().gather(1, places))
        assert torch.allclose(weights, raw / raw.mean())
        assert weights.mean() == pytest.approx(1)


def test_scores_that_are_all_nothing_count_as_equal(make_env):
    for how in ("top", "sample", "weight"):
        one, other = (drawn(how, torch.full((1, 8), value), correct=True) for value in (0.0, 1.0))
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    for options in variants(SAMPLES):
        env = make_env(SAMPLES, **options)
        nothing, everything = (np.full(env.action_space.shape, v, np.float32) for v in (-1, 1))
        assert same(after(env, [nothing] * 2), after(env, [everything] * 2))


@pytest.mark.parametrize("options", variants(SAMPLES), ids=words)
def test_rows_drawn_are_functions_of_the_student_and_its_update_whatever_its_neighbours(make_env, trained_on, options):
    vector = gym.make_vec(SAMPLES, num_envs=3, backend="tiny", **options)
    vector.reset(seed=[4, 5, 6])
    env = make_env(SAMPLES, **options)
    env.reset(seed=5)
    for _ in range(3):
        actions = vector.action_space.sample()
        trained_on.clear()
        vector.step(actions)
        together = [rows[1].tolist() for rows, _ in trained_on]
        trained_on.clear()
        env.step(actions[1])
        assert [rows[0].tolist() for rows, _ in trained_on] == together


@pytest.mark.parametrize("options", variants(SAMPLES), ids=words)
def test_rows_trained_on_come_from_the_pool(make_env, trained_on, options):
    env = make_env(SAMPLES, **options)
    env.reset(seed=1)
    process, family = env.episodes.process, env.family
    for _ in range(3):
        pools = [
            process.lessons.streams[0].rows(int(process.update) + i, family.pool)[0] for i in range(family.updates)
        ]
        trained_on.clear()
        action = env.action_space.sample()
        env.step(action)
        assert len(trained_on) == len(pools)
        for (rows, _), pool in zip(trained_on, pools, strict=True):
            places = [pool.tolist().index(row) for row in rows[0].tolist()]
            assert len(set(places)) == 8
            if family.select == "top":
                assert set(places) == set(np.argsort(action)[-8:])
            if family.select == "weight":
                assert places == list(range(8))


def test_candidates_shown_are_those_chosen_among(make_env):
    env = make_env(SAMPLES, context="noise-40", **INSTANCE)
    seen, _ = env.reset(seed=2)
    process = env.episodes.process
    for update in range(3):
        rows = torch.from_numpy(process.lessons.streams[0].rows(update, 16)[0])
        labels = process.lessons.labels[0][rows]
        with torch.no_grad():
            student = encode(process.params, process.init.arch, process.train.batch(rows[None])).logits[0].softmax(-1)
        teacher = process.lessons.teachers["full"][0].logits[rows].softmax(-1)
        at = torch.arange(16)
        ce, their_ce = -student[at, labels].log(), -teacher[at, labels].log()
        expected = {
            "progress": torch.full((16,), update / 20),
            "teacher_entropy": -(teacher * teacher.log2()).sum(-1),
            "student_loss": ce / (1 + ce),
            "disagreement": (teacher - student).abs().sum(-1) / 2,
            "teacher_loss": their_ce / (1 + their_ce),
            "student_entropy": -(student * student.log2()).sum(-1),
            "student_margin": (student[:, 0] - student[:, 1]).abs(),
            "agreement": (teacher.argmax(-1) == labels).float(),
        }
        assert [feature.name for feature in env.episodes.features] == list(expected)
        assert seen == pytest.approx(torch.stack(list(expected.values()), 1).numpy(), abs=1e-5)
        seen, *_ = env.step(env.action_space.sample())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool": 4}, "a pool of 4 candidates is smaller than the batch of 8; take at least 8"),
        ({"pool": 0}, "a pool of 0 candidates"),
        ({"pool": 16, "select": "weight", **INSTANCE}, "its pool is the batch of 8"),
        ({"select": "top"}, "it needs granularity='instance'"),
        ({"select": "tops", **INSTANCE}, "did you mean 'top'"),
        ({"reward": "batch_ce"}, "reward 'batch_ce' has no meaning where rows are selected; take cross_entropy"),
    ],
)
def test_options_that_do_not_go_together_are_one_clear_line(make_env, options, said):
    with pytest.raises(KDGymError) as caught:
        make_env(SAMPLES, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("quantile", [0, 3])
def test_a_quantile_that_alone_has_weight_is_the_batch(make_env, trained_on, quantile):
    env = make_env(SAMPLES, context="noise-40", pool=32)
    env.reset(seed=0)
    process, weights = env.episodes.process, np.ones((3, 4), np.float32)
    weights[1] = -1
    weights[1, quantile] = 1  # a quarter of 32 by the student's loss
    pool, seen = process.lessons.streams[0].rows(0, 32)[0], process.peek(32)
    loss = F.cross_entropy(seen.logits[0], seen.labels[0], reduction="none")
    env.step(weights.ravel())
    quarter = loss.argsort()[8 * quantile : 8 * quantile + 8]
    assert set(pool[quarter].tolist()) == set(trained_on[0][0][0].tolist())


def test_rows_that_only_fill_a_corrected_batch_weigh_nothing():
    scores = torch.tensor([[0.0, 1.0, 0.0, 0.5, 0.0, 0.0]])
    places, weights = choose(Selection(scores, 6, correct=True), scores, 4, [(0, 0)])
    expected = {1: 4 / 3, 3: 8 / 3}
    for place, weight in zip(places[0].tolist(), weights[0].tolist(), strict=True):
        assert weight == pytest.approx(expected.get(place, 0.0))


def test_a_measure_without_weights_leaves_the_choice_to_the_others(make_env):
    env = make_env(SAMPLES)
    weights = np.full((3, 4), -1, np.float32)
    weights[1] = [-1, -1, -1, 1]
    scores = env.family.decide([weights.ravel()], env.episodes).control.selection.scores[0]
    assert scores.tolist() == [[1] * 4, [0, 0, 0, 1], [1] * 4]


def test_a_neighbour_that_fails_or_starts_anew_costs_the_others_nothing():
    def play(broken):
        env = gym.make_vec(SAMPLES, num_envs=2, backend="tiny", granularity="instance", reward_every=2)
        env.reset(seed=[1, 2])
        seen = []
        for step in range(4):
            if broken and step == 1:
                with torch.no_grad():
                    env.episodes.process.params["classifier.weight"][1] = torch.nan
            info = env.step(np.zeros(env.action_space.shape, np.float32))[-1]
            seen.append((int(info["flops"][0]), float(info["reward_terms"]["accuracy_gain"][0])))
        return seen

    assert play(False) == play(True)
