"""A stack on a CPU in as many threads as there are cores: the same students, and nothing left behind."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from families import same
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.sampling import Selection
from kd_gym.backend.state import Context
from kd_gym.backend.terms import Control
from kd_gym.backend.threads import in_threads

DEFAULT = Context()


@pytest.fixture
def threads():
    """Sets torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def made(make_process):
    """A process of so many students that have just been reset."""

    def make(students, **options):
        process = make_process(students, **options)
        process.reset(range(students), [DEFAULT] * students)
        return process

    return make


def even(students, selection=None):
    return Control(torch.full((students, 4), 0.25), selection=selection)


def test_students_of_a_stack_are_trained_by_as_many_threads_as_there_are(made, threads, monkeypatch):
    seen = set()
    forward = DistillationProcess._forward

    def noted(self, params, slots, *args, **kwargs):
        seen.add((tuple(slots), threading.get_ident(), torch.get_num_threads()))
        return forward(self, params, slots, *args, **kwargs)

    threads(4)
    one, two = made(5), made(5)
    monkeypatch.setattr(DistillationProcess, "_forward", noted)
    one.advance(even(5), 6)
    assert {slots for slots, *_ in seen} == {(0,), (1,), (2,), (3, 4)}
    assert len({thread for _, thread, _ in seen}) == 4
    assert {share for *_, share in seen} == {1}
    with ThreadPoolExecutor(1) as fresh:
        assert torch.get_num_threads() == fresh.submit(torch.get_num_threads).result() == 4
    first = set(seen)
    one.advance(even(5), 1)
    assert seen == first  # a part has the same thread every time
    two.advance(even(5), 6)
    two.advance(even(5), 1)
    assert same(one.snapshot().tensors, two.snapshot().tensors)
    threads(1)
    seen.clear()
    two.advance(even(5), 1)
    assert [slots for slots, *_ in seen] == [tuple(range(5))]


@pytest.mark.parametrize("pool", [None, 12])
def test_what_is_seen_of_a_batch_does_not_depend_on_the_threads(made, threads, pool):
    found = []
    for count in (1, 2):
        threads(count)
        process = made(3)
        found.append(process.peek(pool))
    whole, parts = found
    assert torch.equal(whole.labels, parts.labels)
    assert torch.allclose(whole.logits, parts.logits, atol=1e-5)
    assert torch.allclose(whole.cls, parts.cls, atol=1e-5)
    for one, other in zip(whole.teachers, parts.teachers, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.cls, other.cls)


def test_a_look_a_choice_of_rows_and_a_review_are_a_students_own_in_any_number_of_threads(made, threads):
    scores = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(0))
    ends, reviews = [], []
    for count in (1, 3):
        threads(count)
        process = made(3, dtype=torch.float64)
        process.advance(even(3, Selection(scores, 16)), 2)
        process.peek()
        process.advance(even(3), 2)
        ends.append(process)
        reviews.append(torch.stack(process.review()))
    one, other = ends
    assert torch.allclose(*reviews, atol=1e-9)
    assert all(torch.allclose(value, other.params[name], atol=1e-9) for name, value in one.params.items())
    assert one.cost.student.tolist() == other.cost.student.tolist()


def test_a_part_that_fails_is_told_when_no_other_works_any_more(threads):
    threads(2)
    ended = []

    def work(part):
        if part == 0:
            raise ValueError("the first one")
        time.sleep(0.2)
        ended.append(part)

    with pytest.raises(ValueError, match="the first one"):
        in_threads(work, [0, 1])
    assert ended == [1]
    assert torch.get_num_threads() == 2


def test_a_forked_child_has_threads_of_its_own(threads):
    threads(2)
    assert in_threads(abs, [-1, -2]) == [1, 2]
    child = os.fork()
    if child == 0:
        os._exit(0 if in_threads(abs, [-3, -4]) == [3, 4] else 1)
    deadline = time.monotonic() + 20
    ended, status = 0, 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.05)
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended
    assert os.waitstatus_to_exitcode(status) == 0
