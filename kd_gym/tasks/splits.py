"""The carve: four disjoint splits out of the published rows, fixed per task and never per seed."""

from collections.abc import Iterable, Sequence

from kd_gym.errors import KDGymError
from kd_gym.files import text_digest
from kd_gym.tasks.sources import Source

SPLITS = ("train", "reward", "select", "report")
SMALLEST_TRAIN = 64  # one batch of the largest recipe
CARVE_VERSION = 1  # a part of every cache key: raise it when a change here moves a row


def normalise(texts: tuple[str, ...]) -> str:
    """The whole input as it counts for equality: lower case, single spaces, a pair as one."""
    return "\t".join(" ".join(text.lower().split()) for text in texts)


def _spans(words: Sequence[str]) -> Iterable[int]:
    """Hashes of all contiguous parts of a text, itself included."""
    ends = range(len(words) + 1)
    return (hash(tuple(words[i:j])) for i in ends for j in ends[i + 1 :])


def find_roots(keys: Sequence[str]) -> list[int]:
    """The rows whose text is contained, as whole words, in no other row.

    From long to short: a row is contained in a longer one exactly if it is a span of a root seen before.
    """
    words = [key.split() for key in keys]
    seen: set[int] = set()
    roots = []
    for row in sorted(range(len(keys)), key=lambda r: -len(words[r])):
        if hash(tuple(words[row])) not in seen:
            roots.append(row)
            seen.update(_spans(words[row]))
    return sorted(roots)


def carve(source: Source) -> dict[str, list[int]]:
    """Row numbers of `train`, `reward` and `select` in the train rows, and of `report`.

    Duplicates go first (the first of them stays), then whatever stands in the published validation set, which is
    `report` as it is. Held-out rows are those with the smallest hash of their text: a tenth, at most 1,000, for each
    of `reward` and `select` (and of `report`, numbered in the train rows, where nothing was published).
    """
    keys = [normalise(text) for text in source.train.texts]
    taken = {normalise(text) for text in source.validation.texts} if source.validation else set()
    rows = []
    for row, key in enumerate(keys):
        if key not in taken:
            taken.add(key)
            rows.append(row)
    candidates = rows
    if source.task.nested:
        candidates = [rows[i] for i in find_roots([keys[r] for r in rows])]
    size = min(1000, len(rows) // 10)
    held_names = ("reward", "select") if source.validation else ("reward", "select", "report")
    ordered = sorted(candidates, key=lambda r: text_digest((source.task.name, keys[r])))
    if size * len(held_names) >= len(ordered) or size == 0:
        raise KDGymError(
            f"{source.name}: {len(rows)} different rows are too few to carve {', '.join(held_names)} out of them"
        )
    splits = {name: ordered[i * size : (i + 1) * size] for i, name in enumerate(held_names)}
    held = {row for split in splits.values() for row in split}
    inside = {s for r in held for s in _spans(keys[r].split())} if candidates is not rows else set()
    splits["train"] = [r for r in rows if r not in held and hash(tuple(keys[r].split())) not in inside]
    if len(splits["train"]) < SMALLEST_TRAIN:
        raise KDGymError(
            f"{source.name}: {len(splits['train'])} of {len(keys)} rows are left to train on when duplicates and "
            f"held-out rows are gone, fewer than one batch of {SMALLEST_TRAIN}; add rows"
        )
    if source.validation:
        splits["report"] = list(range(len(source.validation)))
    return {name: splits[name] for name in SPLITS}
