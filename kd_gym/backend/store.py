"""The teacher store: what a frozen teacher says of every row of a split, looked up by row number."""

import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd_gym.backend.knowledge import TeacherBatch
from kd_gym.backend.teacher import Progress, load_teacher, summary_place, teacher_inputs
from kd_gym.errors import KDGymError
from kd_gym.files import build_once, cache_dir, digest, file_digest, write_json
from kd_gym.tasks.data import TaskData


@dataclass(frozen=True)
class TeacherStore:
    """Logits [rows, C] and the summary state of every layer [rows, L, H] of one teacher: memory-mapped, or on a GPU,
    so that no update waits for a copy from the host.

    `key` names all that the numbers depend on: weights, tokenizer, data, split, length and dtype; `seconds` is what
    filling it took.
    """

    logits: Tensor
    cls: Tensor
    key: dict[str, str]
    seconds: float = 0.0

    @property
    def width(self) -> int:
        """The teacher's hidden size."""
        return self.cls.shape[-1]

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.cls.shape[1]

    def get(self, rows: Tensor, layers: Tensor) -> TeacherBatch:
        """What the teacher says of rows [N, B]: logits [N, B, C] and the states of these layers [N, l, B, H]."""
        flat = rows.flatten().to(self.cls.device)
        logits = self.logits[flat].view(*rows.shape, -1)
        cls = self.cls[flat.unsqueeze(1), layers.to(flat.device)].view(*rows.shape, len(layers), -1)
        return TeacherBatch(logits.to(rows.device), cls.to(rows.device).float().transpose(1, 2))

    def to(self, device: torch.device) -> "TeacherStore":
        """The same numbers on another device."""
        return TeacherStore(self.logits.to(device), self.cls.to(device), self.key, self.seconds)

    def check(self, key: dict[str, str]) -> None:
        """Raise unless the store was made of just this."""
        for part, value in key.items():
            if self.key.get(part) != value:
                raise KDGymError(
                    f"this teacher store belongs to another {part}: it has {self.key.get(part)}, {value} is needed; "
                    "run `kd-gym prepare` for this id"
                )


@dataclass(frozen=True)
class JoinedStore:
    """Two stores of one teacher as one: over the rows of a split, and after them those of another."""

    first: TeacherStore
    second: TeacherStore

    @property
    def width(self) -> int:
        """The teacher's hidden size."""
        return self.first.width

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.first.layers

    def get(self, rows: Tensor, layers: Tensor) -> TeacherBatch:
        """As `TeacherStore.get`."""
        count = len(self.first.logits)
        later = rows >= count
        one = self.first.get(rows.clamp(max=count - 1), layers)
        two = self.second.get((rows - count).clamp(min=0), layers)
        logits = torch.where(later.unsqueeze(-1), two.logits, one.logits)
        return TeacherBatch(logits, torch.where(later[:, None, :, None], two.cls, one.cls))


Store = TeacherStore | JoinedStore


@torch.inference_mode()
def _fill(teacher: Path, data: TaskData, split: str, device: torch.device, progress: Progress, folder: Path) -> None:
    model = load_teacher(teacher, device).eval()
    rows = data.split(split).to(device)
    config = model.config
    place = summary_place(config)
    if config.num_labels != data.classes:
        raise KDGymError(f"teacher {teacher} has {config.num_labels} classes, task {data.task.name} has {data.classes}")
    shape = (len(rows), config.num_hidden_layers, config.hidden_size)
    logits = np.lib.format.open_memmap(folder / "logits.npy", "w+", np.float32, (len(rows), data.classes))
    cls = np.lib.format.open_memmap(folder / "cls.npy", "w+", np.float16, shape)
    done = 0
    for chosen in rows.by_length().split(64):
        output = model(**teacher_inputs(rows.batch(chosen), data.vocabulary, config), output_hidden_states=True)
        logits[chosen.cpu()] = output.logits.float().cpu()
        states = torch.stack([state[:, place] for state in output.hidden_states[1:]], dim=1)
        cls[chosen.cpu()] = states.half().cpu()
        done += len(chosen)
        progress(f"teacher {teacher.parent.name}: storing its outputs", done, len(rows))
    logits.flush()
    cls.flush()


def store_key(teacher: Path, data: TaskData, split: str) -> dict[str, str]:
    """All that a store's numbers depend on."""
    return {
        "weights": file_digest(teacher / "model.safetensors"),
        "tokenizer": data.tokenizer_hash,
        "data": data.fingerprint,
        "split": split,
        "length": str(data.task.max_length),
        "dtype": "float32 logits, float16 states",
    }


def teacher_store(teacher: Path, data: TaskData, split: str, device: torch.device, progress: Progress) -> TeacherStore:
    """The store of a teacher checkpoint over a split, from the cache or filled now."""
    key = store_key(teacher, data, split)

    def build(folder: Path) -> None:
        begin = time.perf_counter()
        _fill(teacher, data, split, device, progress, folder)
        write_json(folder / "key.json", {"key": key, "seconds": round(time.perf_counter() - begin, 1)})

    folder = build_once(cache_dir() / "stores" / f"{data.task.name}-{digest(key)}", build)
    return open_store(folder, key).to(device)


def open_store(folder: Path, key: dict[str, str]) -> TeacherStore:
    """Map a store into memory; `KDGymError` if it belongs to another teacher, tokenizer or data."""
    load = functools.partial(np.load, mmap_mode="c")  # copy-on-write: torch takes no read-only arrays
    about = json.loads((folder / "key.json").read_text())
    logits, cls = (torch.from_numpy(load(folder / f"{name}.npy")) for name in ("logits", "cls"))
    store = TeacherStore(logits, cls, about["key"], about["seconds"])
    store.check(key)
    return store
