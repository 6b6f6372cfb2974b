"""`JointControl`: knowledge, teachers and samples at once, by hand."""

import numpy as np
import pytest
import torch

from families import JOINT, after, same


def test_dict_and_flat_form_of_an_action_are_the_same(make_env):
    flat, parts = make_env(JOINT), make_env(JOINT, action="dict")
    flat.action_space.seed(0)
    actions = [flat.action_space.sample() for _ in range(3)]
    ends = np.cumsum([len(part) for part in flat.family.parts.values()])[:-1]
    named = [dict(zip(flat.family.parts, np.split(action, ends), strict=True)) for action in actions]
    assert set(named[0]) == set(parts.action_space)
    assert same(after(flat, actions), after(parts, named))


@pytest.mark.parametrize("part", ["knowledge", "teachers", "samples"])
def test_a_joint_action_is_the_designs_formula_also_with_two_parts_uniform(make_env, trained_on, part):
    env = make_env(JOINT, action="dict")
    env.reset(seed=1)
    process = env.episodes.process
    random = np.random.default_rng(0)
    action = {name: np.full(len(labels), -1, np.float32) for name, labels in env.family.parts.items()}
    action[part] = random.uniform(-1, 1, len(env.family.parts[part])).astype(np.float32)
    trained_on.clear()
    control = env.family.decide([action], env.episodes).control
    trace = process.advance(control, 1)
    (rows, batch), raw = trained_on[-1], (action[part] + 1) / 2
    w, t = torch.full((4,), 1 / 4), torch.full((4,), 1 / 4)
    if part == "knowledge":
        w = torch.from_numpy(raw / raw.sum())
    elif part == "teachers":
        t = torch.from_numpy(raw / raw.sum())
    assert control.selection.scores.shape == (1, 3, 4)
    if part != "samples":
        assert (control.selection.scores == 1).all()  # all rows alike
    fresh = make_env(JOINT, action="dict")
    fresh.reset(seed=1)  # the student of before the update
    again = fresh.episodes.process
    slow = again._forward(again.params, [0], drawn=(rows, [process.lessons.streams[0].rows(0)[1]]))
    assert torch.allclose(slow.losses, batch.losses)
    loss = sum(
        w[k] * t[m] / again.scale[0, k, m] * slow.losses[0, k, m, i] / 8
        for k in range(4)
        for m in range(4)
        for i in range(8)
    )
    norm = again._back(loss, slow, *again._parts(1))[1]
    assert float(trace.gradient_norm) == pytest.approx(float(norm), rel=1e-4)
