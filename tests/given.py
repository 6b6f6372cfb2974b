"""Tables of texts and labels that tests write."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from kd_gym.errors import KDGymError
from kd_gym.tasks.readers import Rows

Table = dict[str, list]


def write(path: Path, table: Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(table), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table))
            writer.writeheader()
            writer.writerows(records)
    return path


def made_table(columns: tuple[str, ...] = ("text",), labels: tuple = (0, 1), count: int = 60, tag: str = "") -> Table:
    """Rows with all that a format may stumble over: commas, quotes, line ends, other alphabets, odd separators."""
    odd = ["plain", "a, b", 'said "so"', "two\nlines", "naïve Übung 漢字", "one\u2028two\x85three", " spaces  "]
    table: Table = {c: [f"{tag}{c} {i} {odd[i % len(odd)]}" for i in range(count)] for c in columns}
    table["label"] = [labels[i % len(labels)] for i in range(count)]
    return table


def rows_of(table: Table, columns: tuple[str, ...], labels: tuple) -> Rows:
    texts = list(zip(*(table[c] for c in columns), strict=True))
    return Rows(texts, [labels.index(label) for label in table["label"]])


def embedded_or_skip(find: Callable[[], Path]) -> Path:
    """What comes as a wheel, or a skipped test where it is not installed."""
    try:
        return find()
    except KDGymError as error:
        pytest.skip(str(error))
