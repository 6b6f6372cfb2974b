"""Texts of another domain with a task's labels: what a teacher may have learnt instead of the task's own rows."""

import torch
from torch import Tensor

from kd_gym.errors import KDGymError
from kd_gym.plugins import Registry
from kd_gym.tasks import embedded
from kd_gym.tasks.data import TaskData, tokenise
from kd_gym.tasks.readers import Rows
from kd_gym.tasks.splits import normalise
from kd_gym.tasks.tokens import TokenSplit

_TELLING = 4  # words from which on a held-out text that stands in another is no accident

DOMAINS = Registry("domains", {"imdb": lambda: embedded.reviews("imdb")})


def _apart(rows: Rows, data: TaskData) -> list[int]:
    """The rows in which no text of `reward`, `select` or `report` stands."""
    held = {normalise(text) for name in ("reward", "select", "report") for text in data.rows[name].texts}
    keys = [f" {normalise(text)} " for text in rows.texts]
    whole = "\n".join(keys)  # one search over all rows for each held-out text; where it is found is rare
    found = [text for text in held if f" {text} " in whole and len(text.split()) >= _TELLING]
    return [i for i, key in enumerate(keys) if key.strip() not in held and not any(f" {t} " in key for t in found)]


def lesson(domain: str, data: TaskData) -> tuple[TokenSplit, Tensor]:
    """The rows that a teacher learns from, and the tokenizer's ids [V] behind their word pieces.

    Without a domain these are the task's own `train`. Of another domain, rows in which a held-out text of the task
    stands are left out.

    Raises:
        KDGymError: the domain's rows have other labels, or another number of texts, than the task.
    """
    if not domain:
        return data.split("train"), data.vocabulary
    rows: Rows = DOMAINS.get(domain)()
    if len(rows.texts[0]) != len(data.task.text) or max(rows.labels) >= data.classes:
        raise KDGymError(f"domain {domain!r} does not fit task {data.task.name}: it has other texts or labels")
    tokens = tokenise(rows.take(_apart(rows, data)), data.tokenizer, data.task.max_length)
    flat, length = tokens["flat"].long(), tokens["length"]
    vocabulary = torch.cat([data.vocabulary[:1], flat.unique()])  # padding first
    places = torch.searchsorted(vocabulary[1:], flat) + 1
    return TokenSplit(places, length.cumsum(0) - length, length, tokens["second"], tokens["labels"]), vocabulary
