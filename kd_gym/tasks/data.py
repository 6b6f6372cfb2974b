"""A task ready for use: four splits, tokenised, trimmed and fingerprinted."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kd_gym.files import build_once, cache_dir, digest, text_digest
from kd_gym.tasks.readers import Rows
from kd_gym.tasks.sources import Source, load_source
from kd_gym.tasks.splits import CARVE_VERSION, SPLITS, carve, normalise
from kd_gym.tasks.task import Task
from kd_gym.tasks.tokens import TokenSplit


@dataclass
class TaskData:
    """The four splits of a task.

    `vocabulary` [V] holds the ids, in the tokenizer's own numbering, of padding and then, in rising order, of the word
    pieces that stand in any split; token rows count in places of it (`vocabulary[ids]` gives the tokenizer's ids
    back).
    `fingerprint` is a hash over texts and labels of all four splits.
    """

    task: Task
    source: str
    notice: str
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    tokenizer_hash: str
    vocabulary: Tensor
    rows: dict[str, Rows]
    _splits: dict[str, TokenSplit]

    def split(self, name: str) -> TokenSplit:
        """One split's token rows. `report` is for the scorer alone: no env and no controller opens it."""
        return self._splits[name]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.task.labels)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of a tokenizer's rules and vocabulary."""
    return digest(json.loads(tokenizer.backend_tokenizer.to_str()))


def tokenise(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Tensor]:
    """Flat ids (the tokenizer's own), lengths and the start of the second text of all rows."""
    columns = [list(column) for column in zip(*rows.texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length, return_token_type_ids=len(columns) == 2)
    length = torch.tensor([len(ids) for ids in encoded["input_ids"]])
    second = length.clone()
    if len(columns) == 2:
        second = torch.tensor([types.count(0) for types in encoded["token_type_ids"]])
    flat = torch.from_numpy(np.concatenate(encoded["input_ids"]).astype(np.int32))
    return {"flat": flat, "length": length, "second": second, "labels": torch.tensor(rows.labels)}


def _prepare(source: Source, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Carve and tokenise: of each split, its rows in the published files and its tokens."""
    tensors = {}
    for name, indices in carve(source).items():
        table = source.validation if name == "report" and source.validation else source.train
        for key, value in tokenise(table.take(indices), tokenizer, source.task.max_length).items():
            tensors[f"{name}.{key}"] = value
        tensors[f"{name}.rows"] = torch.tensor(indices)
    return tensors


def build_data(source: Source, tokenizer: PreTrainedTokenizerBase, cache: Path | None) -> TaskData:
    """Carve, tokenise and trim; with `cache`, carving and tokenising happen once per content and tokenizer."""
    task = source.task
    tables = [source.train, *([source.validation] if source.validation else [])]
    content = text_digest(f"{y}\t{normalise(x)}\0{x}" for t in tables for x, y in zip(t.texts, t.labels, strict=True))
    tokenizer_hash = tokenizer_digest(tokenizer)
    sizes = [len(table) for table in tables]
    key = digest(CARVE_VERSION, task.name, task.nested, task.max_length, sizes, content, tokenizer_hash)
    if cache is None:
        tensors = _prepare(source, tokenizer)
    else:
        place = cache / "data" / f"{task.name}-{key}"
        build_once(place, lambda folder: save_file(_prepare(source, tokenizer), folder / "tensors.safetensors"))
        tensors = load_file(place / "tensors.safetensors")

    rows, splits = {}, {}
    used = torch.cat([tensors[f"{name}.flat"].long() for name in SPLITS]).unique()
    vocabulary = torch.cat([torch.tensor([tokenizer.pad_token_id]), used[used != tokenizer.pad_token_id]])
    for name in SPLITS:
        table = source.validation if name == "report" and source.validation else source.train
        rows[name] = table.take(tensors[f"{name}.rows"].tolist())
        length = tensors[f"{name}.length"]
        splits[name] = TokenSplit(
            torch.searchsorted(vocabulary[1:], tensors[f"{name}.flat"].long()) + 1,
            length.cumsum(0) - length,
            length,
            tensors[f"{name}.second"],
            tensors[f"{name}.labels"],
        )
    fingerprint = digest(
        {n: text_digest(f"{y}{x}" for x, y in zip(r.texts, r.labels, strict=True)) for n, r in rows.items()}
    )
    return TaskData(task, source.name, source.notice, fingerprint, tokenizer, tokenizer_hash, vocabulary, rows, splits)


def load_data(task_name: str | None, data: str, checkpoint: Path) -> TaskData:
    """The splits of a task (None: own data) under the tokenizer of a checkpoint folder."""
    return build_data(load_source(task_name, data), AutoTokenizer.from_pretrained(checkpoint), cache_dir())
