"""Knowledge losses against what must hold of them, and some against a plain derivation."""

import pytest
import torch
import torch.nn.functional as F

from kd_gym.backend.encoder import encode
from kd_gym.backend.knowledge import KNOWLEDGE, Batch, TeacherBatch
from kd_gym.backend.tiny import tiny_data, tiny_teacher

DATA = tiny_data("MNLI")
ROWS = torch.arange(12)
NAMES = [name for name in KNOWLEDGE.names() if KNOWLEDGE.get(name).reads]


def said_by(name, width=None):
    """What a tiny network says of some rows, in float64."""
    network, params = tiny_teacher(DATA, name, False)
    stacked = {key: value.double()[None] for key, value in params.items()}
    return network.arch, encode(stacked, network.arch, DATA.split("reward").batch(ROWS[None], width), detail=True)


def batch_of(student, teacher, arch, name, progress=1.0):
    """A batch in which both have the same shape; trained maps are the identity."""
    shapes = KNOWLEDGE.get(name).heads(arch, arch.hidden)
    heads = {key: torch.eye(arch.hidden).double().expand(1, *shape) for key, shape in shapes.items()}
    labels = DATA.split("reward").labels[ROWS][None]
    told = TeacherBatch(teacher.logits, teacher.cls, teacher.detail, teacher.cls[:, :-1])
    return Batch(student, told, labels, heads, 2.0, torch.tensor([progress]))


@pytest.mark.parametrize("name", NAMES)
def test_who_says_what_the_teacher_says_has_nothing_left_to_learn(name):
    arch, teacher = said_by("full")
    _, other = said_by("early")
    loss = KNOWLEDGE.get(name).loss
    assert torch.allclose(loss(batch_of(teacher, teacher, arch, name)), torch.zeros(1, 12).double(), atol=1e-9)
    assert (loss(batch_of(other, teacher, arch, name)) > 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_no_knowledge(name):
    found = []
    for width in (None, 40):
        arch, teacher = said_by("full", width)
        _, student = said_by("early", width)
        found.append(KNOWLEDGE.get(name).loss(batch_of(student, teacher, arch, name)))
    assert torch.allclose(found[0], found[1], atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_knowledge_has_a_gradient_where_there_are_three_classes(name):
    arch, teacher = said_by("full")
    network, params = tiny_teacher(DATA, "early", False)
    leaves = {key: value.double()[None].requires_grad_() for key, value in params.items()}
    student = encode(leaves, network.arch, DATA.split("reward").batch(ROWS[None]), detail=True)
    loss = KNOWLEDGE.get(name).loss(batch_of(student, teacher, arch, name)).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    assert all(g.isfinite().all() for g in found)
    assert sum(float(g.abs().sum()) for g in found) > 1e-6


def test_distances_and_angles_are_rkds():
    arch, teacher = said_by("full")
    _, student = said_by("early")
    found = KNOWLEDGE.get("geometry").loss(batch_of(student, teacher, arch, "geometry"))[0]

    def apart(x):
        d = torch.stack([torch.stack([(a - b).norm() for b in x]) for a in x])
        return d / d[d > 0].mean()

    def angle(x, i, j, k):
        return F.cosine_similarity(x[j] - x[i], x[k] - x[i], dim=0)

    s, t = student.cls[0, -1], teacher.cls[0, -1]
    for i in (0, 5):
        distance = F.smooth_l1_loss(apart(s)[i], apart(t)[i])
        angles = [
            F.smooth_l1_loss(angle(s, i, j, k), angle(t, i, j, k)) if i not in (j, k) else torch.zeros(())
            for j in range(12) for k in range(12)
        ]  # fmt: skip
        assert float(found[i]) == pytest.approx(float(distance + 2 * torch.stack(angles).mean()), rel=1e-5)


def test_correlation_is_dists():
    arch, teacher = said_by("full")
    _, student = said_by("early")
    found = KNOWLEDGE.get("correlation").loss(batch_of(student, teacher, arch, "correlation"))[0]
    s, t = ((side.logits[0] / 2).softmax(-1) for side in (student, teacher))
    between = [1 - torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(s, t, strict=True)]
    within = torch.stack([1 - torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(s.T, t.T, strict=True)]).mean()
    assert torch.allclose(found, 4 * (torch.stack(between) + within), atol=1e-8)


def test_fsp_matrices_are_those_of_each_text_alone():
    arch, teacher = said_by("full")
    _, student = said_by("early")
    found = KNOWLEDGE.get("fsp").loss(batch_of(student, teacher, arch, "fsp"))[0]
    for i, length in enumerate(DATA.split("reward").length[ROWS].tolist()):
        first, last = ([side.detail.hidden[0, layer, i, :length] for side in (student, teacher)] for layer in (0, -1))
        ours, theirs = (a.T @ b / length for a, b in zip(first, last, strict=True))
        assert float(found[i]) == pytest.approx(float((ours - theirs).square().mean()), rel=1e-9)


def test_annealing_rises_in_ten_steps_over_the_first_half():
    arch, teacher = said_by("full")
    loss = KNOWLEDGE.get("annealed").loss
    size = teacher.logits.square().mean(-1)
    for progress, factor in ((0.0, 0.1), (0.04, 0.1), (0.06, 0.2), (0.24, 0.5), (0.5, 1.0), (1.0, 1.0)):
        found = loss(batch_of(teacher, teacher, arch, "annealed", progress))
        assert torch.allclose(found, (1 - factor) ** 2 * size, atol=1e-9)
