"""Where a task's rows come from: given folders, the Hugging Face hub, or the embedded corpus."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kd_gym.errors import KDGymError
from kd_gym.plugins import nearest
from kd_gym.tasks import embedded
from kd_gym.tasks.readers import SUFFIXES, Rows, infer_task, parse_rows
from kd_gym.tasks.task import TASKS, Task

EMBEDDED_TASKS = ("SST2", "RottenTomatoes")


@dataclass
class Source:
    """The rows of a task as they were published, and the words that name where they are from.

    Without `validation` the carve takes the `report` split out of `train` too.
    """

    task: Task
    train: Rows
    validation: Rows | None
    name: str
    notice: str = ""


def _split_file(folder: Path, stem: str) -> Path | None:
    for suffix in SUFFIXES:
        found = sorted(folder.glob(f"{stem}*{suffix}"))
        if len(found) > 1 and "-of-" in found[0].name:
            raise KDGymError(f"{found[0]}: one of {len(found)} parts; merge them into {stem}{suffix}")
        if found:
            return found[0]
    return None


def _folder(folder: Path) -> tuple[Path, Path | None] | None:
    train = _split_file(folder, "train")
    validation = _split_file(folder, "validation") or _split_file(folder, "dev") or _split_file(folder, "test")
    return (train, validation) if train else None


def _read_pair(task: Task | None, train: Path, validation: Path | None) -> Source:
    known = task or infer_task(train)
    return Source(
        known,
        parse_rows(train, known),
        parse_rows(validation, known) if validation else None,
        f"files:{train.parent.name}/{train.name}",
    )


def _from_path(task: Task | None, text: str) -> Source:
    parts = [Path(part).expanduser() for part in text.split(",")]
    for part in parts:
        if not part.exists():
            raise KDGymError(f"{part}: no such file or folder; --data takes auto, hub, embedded or a path")
    if len(parts) > 2 or (len(parts) == 2 and not all(part.is_file() for part in parts)):
        raise KDGymError(f"{text}: one folder, one file, or TRAIN,VALIDATION files are expected")
    if parts[0].is_file():
        return _read_pair(task, parts[0], parts[1] if len(parts) == 2 else None)
    inner = parts[0] / task.name.lower() if task else parts[0]
    found = (_folder(inner) if inner.is_dir() else None) or _folder(parts[0])
    if found is None:
        stems = f"{task.name.lower()}/train.* or train.*" if task else "train.*"
        raise KDGymError(f"{parts[0]}: no {stems} here ({', '.join(SUFFIXES)}); see docs/data.md")
    return _read_pair(task, *found)


def _given_folders(task: Task) -> Iterator[Source]:
    for entry in filter(None, os.environ.get("KD_GYM_DATA", "").split(os.pathsep)):
        folder = Path(entry).expanduser() / task.name.lower()
        if folder.is_dir() and (found := _folder(folder)):
            yield _read_pair(task, *found)


@contextlib.contextmanager
def cache_alone_unless_the_hub_answers() -> Iterator[None]:
    """Ask the hub once, for five seconds at most; its clients by themselves retry aloud, or wait for ever."""
    import datasets
    import huggingface_hub as hub

    try:
        answers = hub.get_session().head(hub.constants.ENDPOINT, timeout=5).status_code < 500
    except Exception:  # any of the client's many kinds, offline mode among them
        answers = False
    before = datasets.config.HF_HUB_OFFLINE, hub.constants.HF_HUB_OFFLINE
    if not answers:
        datasets.config.HF_HUB_OFFLINE = hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.constants.HF_HUB_OFFLINE = before


def _from_hub(task: Task) -> Source:
    """The task from the hub or the hub's local cache; says within seconds when neither answers."""
    if task.hub is None:
        raise KDGymError(f"task {task.name} is not on the hub; give --data PATH")
    import datasets

    try:
        with cache_alone_unless_the_hub_answers():
            loaded = datasets.load_dataset(*task.hub)
        splits = {name: loaded[name].to_dict() for name in ("train", task.validation)}
    except Exception as error:  # the hub's client raises many kinds, all of which mean the same here
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise KDGymError(
            f"the hub did not give {task.hub[0]} ({reason}); use --data embedded (SST2, RottenTomatoes), --data PATH, "
            "or set KD_GYM_DATA to a folder with <task>/train.parquet"
        ) from None
    rows = {
        name: Rows(list(zip(*(columns[c] for c in task.text), strict=True)), list(columns["label"]))
        for name, columns in splits.items()
    }
    return Source(task, rows["train"], rows[task.validation], f"hub:{task.hub[0]}")


def _from_embedded(task: Task) -> Source:
    if task.name not in EMBEDDED_TASKS:
        raise KDGymError(
            f"task {task.name} has no embedded data (only {', '.join(EMBEDDED_TASKS)}); use --data hub or --data PATH"
        )
    notice = ""
    if task.name == "SST2":
        notice = (
            "SST2 IS NOT SST-2 HERE: the embedded stand-in is the Rotten Tomatoes sentences, and `report` is carved "
            "from them. Do not compare these scores with published SST-2 numbers."
        )
    sentences = replace(task, nested=False)  # whole sentences, no phrases of them
    return Source(sentences, embedded.reviews(), None, "embedded:rotten_tomatoes", notice)


def load_source(task_name: str | None, data: str = "auto") -> Source:
    """The rows of a task.

    Args:
        task_name: a registered task, or None for own data (then `data` is a path).
        data: `auto` (given folders, then the hub, then the embedded corpus), `hub`, `embedded`, a folder, a file, or
            `TRAIN,VALIDATION` files.

    Raises:
        KDGymError: one line that names the file or source, the row and the remedy.
    """
    if task_name is None:
        if data in ("auto", "hub", "embedded"):
            raise KDGymError("own data needs --data PATH: a folder with train.csv, or TRAIN.csv,VALIDATION.csv")
        return _from_path(None, data)
    task: Task = TASKS.get(task_name)
    if data == "hub":
        return _from_hub(task)
    if data == "embedded":
        return _from_embedded(task)
    if data != "auto":
        if not Path(data.split(",")[0]).expanduser().exists() and os.sep not in data and "." not in data:
            raise nearest("data source", data, ("auto", "hub", "embedded"))
        return _from_path(task, data)
    if given := next(_given_folders(task), None):
        return given
    try:
        return _from_hub(task)
    except KDGymError:
        if task.name in EMBEDDED_TASKS:
            return _from_embedded(task)
        raise
