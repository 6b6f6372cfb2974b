"""Repeat recorded episodes, and hold what comes out against what was recorded."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kd_gym.errors import KDGymError
from kd_gym.experiments.evaluate import load_controller
from kd_gym.experiments.machine import Machine, this_machine
from kd_gym.experiments.prepare import prepare
from kd_gym.experiments.records import Record, record_of, teacher_hashes
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

    A controller plays itself, and its actions are compared too; a trained policy, which the record does not hold, is
    replaced by its recorded actions, so that all but who chose them is repeated.

    Args:
        file: a record.
        data: where the rows are; they have to be those of the record.
        device: where students live.
    """
    try:
        record = Record.read(file)
        spec = record.spec(data, device)
        lab = spec.lab()
        if lab.data.fingerprint != record.data_fingerprint:
            raise KDGymError(f"the data here is {lab.data.fingerprint}, that of the record {record.data_fingerprint}")
        prepare(spec)
        hashes = teacher_hashes(lab, spec)
        for name, weights in record.teachers.items():
            if hashes.get(name) != weights:
                raise KDGymError(f"teacher {name} is {hashes.get(name)} here, that of the record {weights}")
        env = spec.make()
        controller: Any
        if record.trained:
            controller = Replay(env.action_space, record.episode.actions)
        else:
            controller, _ = load_controller(record.controller, spec)
    except KDGymError as error:
        return Verdict(file, "not comparable", why=str(error))
    except (KeyError, TypeError, ValueError) as error:  # values that no record has
        return Verdict(file, "not comparable", why=f"{file.name} is damaged: {type(error).__name__}: {error}")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(record.machine.threads)
        here = this_machine(lab.device)
        found = record_of(spec, controller, record.controller, play(env, controller, record.episode.seed))
        return _verdict(file, record, found, here)
    except (KDGymError, KeyError, TypeError, ValueError, RuntimeError) as error:  # actions that the space does not have
        return Verdict(file, "differs", why=f"{type(error).__name__}: {error}")
    finally:
        torch.set_num_threads(threads)


def _verdict(file: Path, record: Record, found: Record, here: Machine) -> Verdict:
    differing = [name for name in vars(here) if vars(here)[name] != vars(record.machine)[name] and name != "python"]
    exact = not differing
    differences = list(_differences(record.episode, found.episode, exact))
    for name in () if record.trained else ("fixed", "reads_reward"):
        if getattr(record, name) != getattr(found, name):
            differences.append(Difference(name, getattr(record, name), getattr(found, name)))
    for name in sorted(record.teacher.keys() | found.teacher.keys()):
        a, b = record.teacher.get(name), found.teacher.get(name)
        if not _near(a, b, "score", exact):
            differences.append(Difference(f"the teacher's report {name}", a, b))
    why = "" if exact else f"other {', '.join(differing)}: within the tolerance"
    return Verdict(file, "differs" if differences else "repeated", exact, why, tuple(differences))


def _differences(expected: Episode, found: Episode, exact: bool) -> Iterator[Difference]:
    if len(expected.actions) != len(found.actions) or (exact and expected.actions != found.actions):
        yield Difference("actions", expected.actions, found.actions)
    differs = False
    for i, (a, b) in enumerate(_pairs(expected, found)):
        if not _near(a, b, "cross-entropy", exact):
            differs = True
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
    for name in ("reward", "reward_cross_entropy"):
        if not _near(getattr(expected, name), getattr(found, name), "cross-entropy", exact):
            yield Difference(name, getattr(expected, name), getattr(found, name))
    if exact and expected.trace != found.trace and not differs:
        yield Difference("trace", expected.trace, found.trace)
    for name in ("context", "failure", "flops", "evaluation_flops"):
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
