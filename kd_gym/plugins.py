"""Named things that others may add to: tasks, knowledge types, agents.

A name is looked up among the built-in ones, then as `module:attribute`, then among the installed entry points of
the group (`kd_gym.tasks`, `kd_gym.knowledge`, `kd_gym.agents`). An unknown name raises with the nearest valid one.
"""

import difflib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable
from typing import Any, get_args

from kd_gym.errors import KDGymError


def _closest(name: str, valid: Iterable[str]) -> str | None:
    folded = {candidate.lower(): candidate for candidate in valid}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return folded[close[0]] if close else None


def nearest(kind: str, name: str, valid: Iterable[str]) -> KDGymError:
    """The error for an unknown name: says the nearest valid one, or all of them."""
    known = sorted(valid)
    close = _closest(name, known)
    hint = f"did you mean {close!r}?" if close else f"valid: {', '.join(known)}"
    return KDGymError(f"unknown {kind} {name!r}: {hint}")


def load(path: str) -> Any:
    """The object at `module:attribute`; modules of the current folder are found too."""
    module, _, attribute = path.partition(":")
    if not {"", os.getcwd()} & set(sys.path):  # `python -m` puts it there, a console script does not
        sys.path.append(os.getcwd())  # last, so that it hides no installed module
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: `:name`, `.module:name`
        raise KDGymError(f"cannot load {path!r}: {error}") from error


class Registry:
    """Names to objects; a built-in given as `module:attribute` text is imported at its first use."""

    def __init__(self, kind: str, builtin: dict[str, Any]) -> None:
        self.kind = kind
        self.builtin = builtin

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {e.name: e for e in importlib.metadata.entry_points(group=f"kd_gym.{self.kind}")}

    def names(self) -> list[str]:
        """All names: built-in ones in their order, then those of plug-ins."""
        return [*self.builtin, *(n for n in self._entry_points() if n not in self.builtin)]

    def get(self, name: str) -> Any:
        """The object of this name; `KDGymError` names the nearest valid one where there is none."""
        found = self.builtin.get(name)
        if isinstance(found, str):
            return load(found)
        if found is not None:
            return found
        if ":" in name:
            try:
                return load(name)
            except KDGymError as error:
                close = _closest(name.partition(":")[0], self.names())
                raise KDGymError(f"{error}" + (f"; or did you mean {close!r}?" if close else "")) from error
        if point := self._entry_points().get(name):
            return point.load()
        raise nearest(self.kind.rstrip("s"), name, self.names())


def check_choice(kind: str, value: str, literal: Any) -> None:
    """Raise unless a value is one of a `Literal` type's."""
    if value not in get_args(literal):
        raise nearest(kind, str(value), get_args(literal))
