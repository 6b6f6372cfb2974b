"""Threads for the parts of a stack, kept from one call to the next: at instance granularity a call is one update."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_threads: dict[tuple[int, int], ThreadPoolExecutor] = {}  # each of one, by its place and its share of the cores
os.register_at_fork(after_in_child=_threads.clear)  # a child has none of its parent's threads


def in_threads(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """What `work` gives for each part, every one in a thread of its own with an equal share of the cores.

    A second core makes an update of one small student a fifth faster, but lets two be trained at once. A part has the
    same thread every time, which so frees what it allocated.
    """
    if len(parts) == 1:
        return [work(parts[0])]
    cores = torch.get_num_threads()
    share = cores // len(parts)
    try:
        begun = [_thread(place, share).submit(work, part) for place, part in enumerate(parts)]
        wait(begun)  # also where one of them fails: nobody works on when this returns
        return [one.result() for one in begun]
    finally:
        torch.set_num_threads(cores)  # of this thread it never changed, but of threads to come


def _thread(place: int, share: int) -> ThreadPoolExecutor:
    if (place, share) not in _threads:
        _threads[place, share] = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(share,))
    return _threads[place, share]
