"""What was measured of an id: published with the package, and on this machine.

A fact is of one recipe and one source of data: `kd-gym prepare` notes the teachers' scores, `benchmarks/game.py` spread
and room.
"""

import json
from pathlib import Path
from typing import Any

from kd_gym.envs.lab import Lab
from kd_gym.files import cache_dir, write_json

PUBLISHED = Path(__file__).parent / "published"


def facts_here() -> Path:
    """The folder of what was measured on this machine."""
    return cache_dir() / "facts"


def _read(folder: Path, env_id: str) -> list[dict[str, Any]]:
    file = folder / f"{env_id}.json"
    found: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    return found


def facts(env_id: str, recipe: str) -> list[dict[str, Any]]:
    """All facts of an id under a recipe, one for each source of data; what was measured here goes first."""
    found: dict[str, dict[str, Any]] = {}
    for fact in (*_read(PUBLISHED, env_id), *_read(facts_here(), env_id)):
        if fact["recipe"] == recipe:
            found[fact["source"]] = {**found.get(fact["source"], {}), **fact}
    return list(found.values())


def note(folder: Path, env_id: str, lab: Lab, **measured: Any) -> None:
    """Add to the facts of an id on this lab's data; those of the same source and another recipe or data are dropped."""
    about = {"recipe": lab.recipe.hash, "source": lab.data.source, "data": lab.data.fingerprint}
    known = _read(folder, env_id)
    same = next((fact for fact in known if about.items() <= fact.items()), {})
    others = [fact for fact in known if fact["source"] != about["source"]]
    write_json(folder / f"{env_id}.json", [*others, {**same, **about, **measured}])
