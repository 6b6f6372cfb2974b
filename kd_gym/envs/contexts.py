"""The published contexts: what may differ between episodes without the controller being told.

`train` contexts are for learning; `held-out` ones are never seen in training and test whether a controller adapts.
"""

import numpy as np

from kd_gym.backend.state import Context
from kd_gym.plugins import nearest

DEFAULT = Context()
TRAIN = (
    DEFAULT,
    Context("noise-30", label_noise=0.3),
    Context("noise-45", label_noise=0.45),
    Context("noise-40-share-25", label_noise=0.4, train_share=0.25),
    Context("noise-45-share-25", label_noise=0.45, train_share=0.25),
    Context("wrong-teacher", teachers="flipped"),
    Context("wrong-teacher-share-25", teachers="flipped", train_share=0.25),
)
HELD_OUT = (
    Context("noise-20-slow", label_noise=0.2, rate=0.5),
    Context("noise-40", label_noise=0.4),
    Context("noise-30-share-10", label_noise=0.3, train_share=0.1),
    Context("wrong-teacher-slow", teachers="flipped", rate=0.5),
    Context("early-teacher", teachers="early"),
    Context("early-teacher-noise-20", teachers="early", label_noise=0.2),
    Context("share-10", train_share=0.1),
)
SETS: dict[str, tuple[Context, ...]] = {"default": (DEFAULT,), "train": TRAIN, "held-out": HELD_OUT}
SETS |= {c.name: (c,) for c in (*TRAIN[1:], *HELD_OUT)}

_RANGE = 1_000_000_000  # seeds of different purposes (training, scoring, choosing) begin at multiples of it
_STREAM = 7  # of the episode seed: which context is drawn


def context_set(name: str) -> tuple[Context, ...]:
    """The contexts of `default`, `train`, `held-out`, or one by its own name."""
    if name not in SETS:
        raise nearest("context", name, SETS)
    return SETS[name]


def teacher_sets(name: str) -> list[str]:
    """The teacher sets that these contexts ask for."""
    return sorted({context.teachers for context in context_set(name)})


def draw_context(name: str, seed: int) -> Context:
    """The context of the episode with this seed.

    The first seeds of a range, as many as there are contexts, have each of them once, in an order of their own; so have
    the next, and so on. Few evaluation seeds do not fall on one context by chance then.
    """
    contexts = context_set(name)
    purpose, number = divmod(seed, _RANGE)
    block, place = divmod(number, len(contexts))
    return contexts[int(np.random.default_rng([purpose, block, _STREAM]).permutation(len(contexts))[place])]
