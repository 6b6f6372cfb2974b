"""Repeat recorded episodes, and hold what comes out against what was recorded."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kd_gym.agents.protocol import Controller, agent_class
from kd_gym.errors import KDGymError
from kd_gym.experiments.evaluate import load_controller
from kd_gym.experiments.prepare import prepare
from kd_gym.experiments.records import Machine, Record, teacher_hashes, this_machine
from kd_gym.experiments.score import Episode, play

# Elsewhere, or with other versions: rounding differs, and a training carries it on. Between one and two threads we
# measured 5e-6 and 0; a score moves by 1/277 with each row of the smallest `report` split.
TOLERANCE = {"cross-entropy": 0.002, "score": 0.01}
Word = Literal["repeated", "differs", "not comparable"]


@dataclass(frozen=True)
class Difference:
    """A value that did not come out as it was recorded."""

    name: str
    expected: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class Verdict:
    """What became of one record.

    Attributes:
        file: the record.
        word: the answer.
        exact: whether bits had to be equal, not only numbers within the tolerance.
        why: what stands in the way of a comparison, or of exactness.
        differences: what did not come out.
    """

    file: Path
    word: Word
    exact: bool = False
    why: str = ""
    differences: tuple[Difference, ...] = ()


class Replay:
    """Gives recorded actions, one after the other."""

    def __init__(self, space: Any, actions: Sequence[Any]) -> None:
        self._actions = iter(actions)
        self._space = space

    def predict(self, *_: Any, **__: Any) -> tuple[Any, None]:
        """The next one; `KDGymError` where the episode is longer than what was recorded."""
        action = next(self._actions, None)
        if action is None:
            raise KDGymError("the episode has more decisions than were recorded")
        return _shaped(self._space, action), None


def _shaped(space: Any, action: Any) -> Any:
    """An action out of JSON as its space has it."""
    if isinstance(action, dict):
        return {name: _shaped(space[name], part) for name, part in action.items()}
    return np.asarray(action, space.dtype)


def validate(file: Path, data: str = "auto", device: str = "auto") -> Verdict:
    """Play a record's episode again.

    What decides by observations alone is replaced by its recorded actions; what also acts between decisions plays
    itself, and its actions are compared too.

    Args:
        file: a record.
        data: where the rows are; they have to be those of the record.
        device: where students live.
    """
    try:
        record = Record.read(file)
        spec = record.spec(data, device)
        cls = None if record.trained else agent_class(record.controller)[0]
        lab = spec.lab()
        if lab.data.fingerprint != record.data_fingerprint:
            raise KDGymError(f"the data here is {lab.data.fingerprint}, that of the record {record.data_fingerprint}")
        prepare(spec)
        here = teacher_hashes(lab, spec)
        for name, weights in record.teachers.items():
            if here.get(name) != weights:
                raise KDGymError(f"teacher {name} is {here.get(name)} here, that of the record {weights}")
    except KDGymError as error:
        return Verdict(file, "not comparable", why=str(error))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(record.machine.threads)
        return _played(file, record, spec, cls, this_machine(lab.device))
    except (KDGymError, ValueError) as error:  # an action that the space does not have, or one too few
        return Verdict(file, "differs", why=str(error))
    finally:
        torch.set_num_threads(threads)


def _played(file: Path, record: Record, spec: Any, cls: type[Any] | None, here: Machine) -> Verdict:
    env = spec.make()
    if cls is not None and getattr(cls, "begin", Controller.begin) is not Controller.begin:
        controller, _ = load_controller(record.controller, spec)
    else:
        controller = Replay(env.action_space, record.episode.actions)  # type: ignore[assignment]
    found = play(env, controller, record.episode.seed)
    differing = [name for name in vars(here) if vars(here)[name] != vars(record.machine)[name] and name != "python"]
    exact = not differing
    differences = tuple(_differences(record.episode, found, exact))
    why = "" if exact else f"other {', '.join(differing)}: within the tolerance"
    return Verdict(file, "differs" if differences else "repeated", exact, why, differences)


def _differences(expected: Episode, found: Episode, exact: bool) -> Iterator[Difference]:
    if len(expected.actions) != len(found.actions) or (exact and expected.actions != found.actions):
        yield Difference("actions", expected.actions, found.actions)
    for i, (a, b) in enumerate(_pairs(expected, found)):
        if not _near(a, b, "cross-entropy", exact):
            yield Difference(f"reward-split cross-entropy after decision {i + 1}", a, b)
            break  # all that follow differ too
    if exact and expected.parameters != found.parameters:
        yield Difference("hash of the final parameters", expected.parameters, found.parameters)
    for name in sorted(expected.scores.keys() | found.scores.keys()):
        a, b = expected.scores.get(name), found.scores.get(name)
        if not _near(a, b, "score", exact):
            yield Difference(f"report {name}", a, b)
    if not _near(expected.cross_entropy, found.cross_entropy, "cross-entropy", exact):
        yield Difference("report cross-entropy", expected.cross_entropy, found.cross_entropy)
    for name in ("context", "failure"):
        if getattr(expected, name) != getattr(found, name):
            yield Difference(name, getattr(expected, name), getattr(found, name))


def _pairs(expected: Episode, found: Episode) -> Iterator[tuple[float | None, float | None]]:
    first, second = (episode.trace.get("cross_entropy", []) for episode in (expected, found))
    for i in range(max(len(first), len(second))):
        yield (first[i] if i < len(first) else None), (second[i] if i < len(second) else None)


def _near(expected: float | None, found: float | None, kind: str, exact: bool) -> bool:
    if exact or expected is None or found is None:
        return expected == found
    return math.isclose(expected, found, rel_tol=0, abs_tol=TOLERANCE[kind])


def records_in(places: Sequence[Path]) -> list[Path]:
    """Record files, out of files and of folders that hold some (`records/` inside them counts).

    Raises:
        KDGymError: a place that is not there, or holds none.
    """
    found: list[Path] = []
    for place in places:
        inside = sorted(place.glob("records/*.json")) or sorted(place.glob("*.json"))
        if place.is_dir() and not inside:
            raise KDGymError(f"{place} holds no records")
        if not place.exists():
            raise KDGymError(f"no record at {place}")
        found += inside if place.is_dir() else [place]
    return found
