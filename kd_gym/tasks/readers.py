"""Rows out of CSV, JSONL and Parquet files, checked one by one: an error names file, row and remedy."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_gym.errors import KDGymError
from kd_gym.tasks.task import Task

SUFFIXES = (".parquet", ".csv", ".jsonl")
LABEL_COLUMNS = ("label", "labels", "class", "target")
TEXT_COLUMNS = (
    ("text",),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("sentence",),
)
_WHOLE = re.compile("-?[0-9]+")


@dataclass
class Rows:
    """Inputs (one or two texts each) and their class numbers."""

    texts: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "Rows":
        """The rows at these places, in this order."""
        chosen = list(indices)
        return Rows([self.texts[i] for i in chosen], [self.labels[i] for i in chosen])


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise KDGymError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_decode(path), newline=""), strict=True)
    csv.field_size_limit(1 << 24)
    try:
        for row in reader:
            if None in row or None in row.values():
                columns = len(reader.fieldnames or [])
                raise KDGymError(
                    f"{path}, line {reader.line_num}: {columns} columns are expected; quote fields that hold commas"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise KDGymError(f"{path}, line {reader.line_num}: {error}; quote fields that hold commas") from None


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise KDGymError(f"{path}, line {number}: not JSON ({error.msg}); one object a line is expected") from None
        if not isinstance(row, dict):
            raise KDGymError(f"{path}, line {number}: not a JSON object; one object a line is expected")
        yield number, row


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise KDGymError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); write it anew") from None
    for place, column in enumerate(table.schema):
        if pyarrow.types.is_binary(column.type):  # some writers do not mark text as text
            text = table.column(place).cast(pyarrow.string(), safe=False)
            table = table.set_column(place, column.name, text)
    size = 1000
    for begin in range(0, len(table), size):
        try:
            yield from enumerate(table.slice(begin, size).to_pylist(), start=begin + 1)
        except UnicodeDecodeError:
            row = next(r for r in range(begin, len(table)) if not _decodes(table.slice(r, 1)))
            raise KDGymError(f"{path}, row {row + 1}: not UTF-8 text; save the column as UTF-8 strings") from None


def _decodes(table: Any) -> bool:
    try:
        table.to_pylist()
    except UnicodeDecodeError:
        return False
    return True


def read_file(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """All rows of a file with their line numbers (row numbers for Parquet)."""
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise KDGymError(f"{path}: unknown file type {path.suffix!r}; use {', '.join(SUFFIXES)}")
    rows = list(readers[path.suffix](path))
    if not rows:
        raise KDGymError(f"{path}: no rows; a header and at least one row are expected")
    return rows


def infer_task(path: Path) -> Task:
    """A task for own data: its columns by name, its classes as they stand in the training file."""
    rows = read_file(path)
    columns = list(rows[0][1])
    label = next((c for c in LABEL_COLUMNS if c in columns), None)
    text = next((t for t in TEXT_COLUMNS if set(t) <= set(columns)), None)
    if label is None or text is None:
        missing = "a label column ('label')" if label is None else "a text column ('text')"
        raise KDGymError(
            f"{path}, row {rows[0][0]}: {missing} is missing among {', '.join(map(str, columns))}; rename one to "
            "'label' and one or two to 'text' or 'text1' and 'text2'"
        )
    values = {str(row[label]) for _, row in rows if row.get(label) not in (None, "")}
    numeric = all(_WHOLE.fullmatch(v) for v in values)
    labels = tuple(sorted(sorted(values), key=int) if numeric else sorted(values))
    if len(labels) < 2:
        raise KDGymError(f"{path}: one class only ({', '.join(labels) or 'no label'}); two or more are needed")
    return Task("Own", text, labels)


def parse_rows(path: Path, task: Task, label_column: str | None = None) -> Rows:
    """The rows of a file as the task reads them.

    A label is a class name, or the number of a class for tasks that declare names (GLUE's files).
    """
    found = read_file(path)
    columns = found[0][1]
    label_column = label_column or next((c for c in LABEL_COLUMNS if c in columns), "label")
    for column in (*task.text, label_column):
        if column not in columns:
            raise KDGymError(
                f"{path}, row {found[0][0]}: column {column!r} is missing; it has {', '.join(map(str, columns))}"
            )
    numbers = {name: index for index, name in enumerate(task.labels)}
    if not any(_WHOLE.fullmatch(name) for name in task.labels):
        numbers |= {str(index): index for index in range(len(task.labels))}
    rows = Rows()
    for number, row in found:
        text = tuple("" if row.get(column) is None else str(row[column]) for column in task.text)
        if not all(part.strip() for part in text):
            raise KDGymError(f"{path}, row {number}: empty text; remove the row or fill {' and '.join(task.text)}")
        label = numbers.get(str(row.get(label_column)))
        if label is None:
            raise KDGymError(
                f"{path}, row {number}: label {row.get(label_column)!r} is outside the declared set "
                f"({', '.join(task.labels)})"
            )
        rows.texts.append(text)
        rows.labels.append(label)
    if len(set(rows.labels)) < 2:
        raise KDGymError(f"{path}: one class only ({task.labels[rows.labels[0]]}); two or more are needed")
    return rows
