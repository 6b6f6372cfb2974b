"""Validate submissions to the leaderboard, as the repository's CI does: a sample of each entry's records, then all.

    python benchmarks/leaderboard/check.py [ENTRY ...] [--sample 3] [--data auto]

An entry is a folder under `benchmarks/leaderboard/entries` with `entry.yaml` (`name`, `about`, `command`) and
`records/`. Every id in it needs the first five evaluation seeds in the default context under one controller. Exit code
1 if an entry is not whole, or a record does not come out, or cannot be compared here.
"""

import argparse
import random
import sys
from pathlib import Path

import yaml

from kd_gym.agents.protocol import agent_class
from kd_gym.envs.recipes import Backend
from kd_gym.errors import KDGymError
from kd_gym.experiments.records import Record
from kd_gym.experiments.setup import EVALUATION_SEEDS, EnvSpec
from kd_gym.experiments.validate import records_in, validate

ENTRIES = Path(__file__).parent / "entries"
KEYS = ("name", "about", "command")
SEEDS = 5


def kwargs_of(record: Record, backend: Backend) -> dict[str, object]:
    """The keyword arguments of an honest record: the id's own, and what the controller needs; of a trained policy also
    the action and the observation that it was trained with.
    """
    config = {"context": "default"}
    if record.trained:
        config |= {
            name: record.kwargs[name] for name in ("action", "observation", "granularity") if name in record.kwargs
        }
        return {"backend": backend, **config}
    spec = EnvSpec(record.env, backend=backend, config=config).for_agent(agent_class(record.controller)[0])
    return {name: value for name, value in spec.kwargs.items() if name not in ("data", "device")}


def read_entry(folder: Path, backend: Backend = "full") -> tuple[dict[str, str], list[Record]]:
    """What an entry says, and its records.

    Raises:
        KDGymError: it is not whole.
    """
    file = folder / "entry.yaml"
    try:
        told = yaml.safe_load(file.read_text()) if file.is_file() else None
    except yaml.YAMLError:
        told = None
    if not isinstance(told, dict) or set(told) != set(KEYS):
        raise KDGymError(f"{file} should have {', '.join(KEYS)}")
    records = [Record.read(record) for record in records_in([folder])]
    if len({record.controller for record in records}) != 1:
        raise KDGymError(f"{folder}: the records are of more than one controller")
    for env in {record.env for record in records}:
        own = [record for record in records if record.env == env]
        seeds = sorted(record.episode.seed - EVALUATION_SEEDS for record in own)
        contexts = {record.kwargs.get("context", "default") for record in own}
        if seeds[:SEEDS] != list(range(SEEDS)) or len(set(seeds)) != len(seeds) or contexts != {"default"}:
            raise KDGymError(
                f"{folder}: {env} needs the seeds 0 to {SEEDS - 1} once each, in the default context alone"
            )
        for record in own:
            if {"context": "default", **record.kwargs} != kwargs_of(record, backend):
                raise KDGymError(f"{folder}: {env} was not played as the id and its controller say: {record.kwargs}")
    return told, records


def check(folder: Path, sample: int, data: str, backend: Backend = "full") -> list[str]:
    """What is wrong with an entry, a line for each record; nothing, if all came out."""
    try:
        read_entry(folder, backend)
    except KDGymError as error:
        return [str(error)]
    files = records_in([folder])
    first = random.Random(folder.name).sample(files, min(sample, len(files)))
    for part in (first, [file for file in files if file not in first]):
        verdicts = [validate(file, data) for file in part]
        bad = [
            f"{v.file}: {v.word} {v.why} {'; '.join(map(str, v.differences))}" for v in verdicts if v.word != "repeated"
        ]
        if bad:
            return bad
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", help="folder names; default: all")
    parser.add_argument("--sample", type=int, default=3)
    parser.add_argument("--data", default="auto")
    args = parser.parse_args()
    folders = [ENTRIES / name for name in args.entries] or sorted(f for f in ENTRIES.iterdir() if f.is_dir())
    wrong = 0
    for folder in folders:
        lines = check(folder, args.sample, args.data)
        print(f"{'✗' if lines else '✓'} {folder.name}", *lines, sep="\n    ")
        wrong += bool(lines)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
