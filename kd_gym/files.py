"""Files that other runs may read at any moment: the cache, hashes, atomic writes and locks.

Whatever takes long is built once in a `*.partial` folder beside its place and renamed when it is whole, so a
process killed at any moment leaves nothing that looks finished.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import filelock
import platformdirs


def cache_dir() -> Path:
    """The folder of teachers, stores and scores: `KD_GYM_CACHE`, or the platform's cache folder."""
    return Path(os.environ.get("KD_GYM_CACHE") or platformdirs.user_cache_path("kd-gym"))


def digest(*parts: object) -> str:
    """A hash of 16 hex digits over bytes, text and anything that JSON can hold, in this order."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        total.update(str(len(data)).encode() + b":" + data)
    return total.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(texts: Iterable[str]) -> str:
    """A hash of 16 hex digits over a sequence of texts (their borders count)."""
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode() + b"\0")
    return total.hexdigest()[:16]


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, filled by `build(partial_folder)` if it is not there yet.

    A lock makes a second process wait and then use what the first one built.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.exists():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                build(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def file_words(name: str) -> str:
    """A controller's name as a part of a file name."""
    return "".join(c if c.isalnum() or c in "-+.=" else "_" for c in name)[:40]


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # mkstemp's files are for the owner alone
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
