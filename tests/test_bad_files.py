"""A data file that cannot be read is named, with the row and what to do."""

import re

import pyarrow as pa
import pytest
from pyarrow import parquet

from commands import SST2, refused
from given import embedded_or_skip
from kd_gym.tasks import embedded
from kd_gym.tasks.readers import SUFFIXES
from kd_gym.tasks.task import TASKS

pytestmark = pytest.mark.usefixtures("own_folder")


def good(count: int = 80) -> list[str]:
    return [f"ban ber kis {i},{'yes' if i % 2 else 'no'}" for i in range(count)]


def text_file(lines: list[str], header: str = "text,label") -> bytes:
    return "\n".join([header, *lines, ""]).encode()


def with_line(place: int, line: str) -> bytes:
    lines = good()
    lines[place - 2] = line  # the header is line 1
    return text_file(lines)


BAD_FILES = {
    "no label column": (text_file(good(), "text,mark"), r"train.csv, row 2: a label column \('label'\) is missing"),
    "no text column": (
        text_file(good(), "words,label"),
        r"train.csv, row 2: a text column \('text'\) is missing.*rename",
    ),
    "no byte": (b"", "train.csv: no rows; a header and at least one row are expected"),
    "a header alone": (b"text,label\n", "train.csv: no rows; .*expected"),
    "blank lines alone": (b"\n\n\n", "train.csv: no rows; .*expected"),
    "one class": (text_file([f"ban {i},yes" for i in range(80)]), r"train.csv: one class only \(yes\); two or more"),
    "not UTF-8": (
        text_file(good()).replace(b"kis 7,", b"kis \xe9,"),
        "train.csv, line 9: not UTF-8 text; save the file as UTF-8",
    ),
    "UTF-16": (text_file(good()).decode().encode("utf-16"), "train.csv, line 1: not UTF-8 text; save"),
    "too many fields": (with_line(30, "ban, ber,yes"), "train.csv, line 30: 2 columns are expected"),
    "too few fields": (with_line(30, "ban"), "train.csv, line 30: 2 columns are expected"),
    "an open quote": (with_line(30, '"ban,yes'), "train.csv, line .*quote fields that hold commas"),
    "empty text": (with_line(30, "  ,yes"), "train.csv, row 30: empty text; remove the row or fill text"),
    "no label": (with_line(30, "ban,"), r"train.csv, row 30: label '' is outside the declared set \(no, yes\)"),
    "fewer rows than a batch": (text_file(good(31)), "train.csv: .*rows.*add rows"),
    "one row of each class": (text_file(good(2)), "train.csv: 2 different rows are too few to carve"),
    "the same row again and again": (text_file(good(2) * 50), "train.csv: 2 different rows are too few to carve"),
}


@pytest.mark.usefixtures("light_checkpoint")
@pytest.mark.parametrize(("content", "said"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_csv_file_is_named_with_row_and_remedy(complaint, tmp_path, content, said):
    file = tmp_path / "train.csv"
    file.write_bytes(content)
    assert re.search(said, complaint("prepare", "--env", "KnowledgeSelect", "--data", file))


@pytest.mark.usefixtures("light_checkpoint")
@pytest.mark.parametrize("command", [("train", "--agent", "ppo"), ("evaluate", "uniform"), ("prepare",)], ids=str)
def test_every_command_names_a_bad_file(complaint, tmp_path, command):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.csv").write_bytes(with_line(30, "ban,"))
    said = complaint(*command, "--env", "KnowledgeSelect", "--data", tmp_path / "mine")
    assert "train.csv, row 30: label '' is outside the declared set" in said


@pytest.mark.usefixtures("light_checkpoint")
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["ban,yes", "ber,maybe"], r"b.csv, row 3: label 'maybe' is outside the declared set \(no, yes\)"),
        (["ban,yes", "ber,yes"], r"b.csv: one class only \(yes\)"),
        ([], "b.csv: no rows"),
    ],
)
def test_a_bad_validation_file_is_the_one_that_is_named(complaint, tmp_path, lines, said):
    (tmp_path / "a.csv").write_bytes(text_file(good()))
    (tmp_path / "b.csv").write_bytes(text_file(lines))
    data = f"{tmp_path / 'a.csv'},{tmp_path / 'b.csv'}"
    assert re.search(said, complaint("prepare", "--env", "KnowledgeSelect", "--data", data))


BAD_LINES = {
    "no JSON": ('{"text": "ban", label: 1}', "train.jsonl, line 5: not JSON .*; one object a line is expected"),
    "a list": ('["ban", 1]', "train.jsonl, line 5: not a JSON object; one object a line is expected"),
    "a missing text": ('{"label": 1}', "train.jsonl, row 5: empty text; remove the row or fill text"),
    "a null text": ('{"text": null, "label": 1}', "train.jsonl, row 5: empty text; remove the row or fill text"),
    "a missing label": ('{"text": "ban"}', "train.jsonl, row 5: label None is outside the declared set"),
    "a null label": ('{"text": "ban", "label": null}', "train.jsonl, row 5: label None is outside the declared set"),
    "bytes": (b'{"text": "b\xff", "label": 1}', "train.jsonl, line 5: not UTF-8 text; save the file as UTF-8"),
}


@pytest.mark.usefixtures("light_checkpoint")
@pytest.mark.parametrize(("line", "said"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_of_jsonl_is_named_with_its_remedy(complaint, tmp_path, line, said):
    lines = [f'{{"text": "ban {i}", "label": {i % 2}}}'.encode() for i in range(80)]
    lines[4] = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(lines))
    assert re.search(said, complaint("prepare", "--env", "KnowledgeSelect", "--data", tmp_path / "train.jsonl"))


def parquet_bytes(table: dict) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(table), sink)
    return sink.getvalue().to_pybytes()


def mixed_bytes(count: int = 2500) -> pa.Array:
    """Strings, one of which is not UTF-8, as some writers leave them."""
    words = [f"ban {i}".encode() for i in range(count)]
    words[1700] = b"ban \xff"
    return pa.array(words, pa.binary())


PLAIN = {"text": [f"ban {i}" for i in range(80)], "label": [i % 2 for i in range(80)]}
BAD_PARQUET = {
    "no Parquet": (b"text,label\nban,1\n", "train.parquet: not a readable Parquet file .*; write it anew"),
    "no byte": (b"", "train.parquet: not a readable Parquet file .*; write it anew"),
    "the first half": (parquet_bytes(PLAIN)[:400], "train.parquet: not a readable Parquet file .*; write it anew"),
    "a broken footer": (
        (lambda b: b[:-60] + b"\xff" * 40 + b[-20:])(parquet_bytes(PLAIN)),
        "train.parquet: not a readable Parquet file .*; write it anew",
    ),
    "no row": (parquet_bytes({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), "no rows"),
    "bytes": (
        parquet_bytes({"text": mixed_bytes(), "label": [i % 2 for i in range(2500)]}),
        "train.parquet, row 1701: not UTF-8 text; save",
    ),
    "a null text": (
        parquet_bytes({**PLAIN, "text": [None if i == 6 else f"ban {i}" for i in range(80)]}),
        "train.parquet, row 7: empty text",
    ),
    "a null label": (
        parquet_bytes({**PLAIN, "label": [None if i == 6 else i % 2 for i in range(80)]}),
        "train.parquet, row 7: label None is outside",
    ),
}


@pytest.mark.usefixtures("light_checkpoint")
@pytest.mark.parametrize(("content", "said"), BAD_PARQUET.values(), ids=BAD_PARQUET.keys())
def test_a_bad_parquet_file_is_named_with_row_and_remedy(complaint, tmp_path, content, said):
    (tmp_path / "train.parquet").write_bytes(content)
    assert re.search(said, complaint("prepare", "--env", "KnowledgeSelect", "--data", tmp_path / "train.parquet"))


@pytest.mark.usefixtures("light_checkpoint")
@pytest.mark.parametrize("name", TASKS.names())
def test_a_label_outside_the_declared_set_and_a_missing_column_are_named_for_every_task(complaint, tmp_path, name):
    task = TASKS.get(name)
    folder = tmp_path / name.lower()
    folder.mkdir()
    classes = len(task.labels)
    texts = {column: [f"ban {i}" for i in range(90)] for column in task.text}
    env = f"KnowledgeSelect-{name}"
    for wrong in (classes, -1):
        labels = [wrong if i == 44 else i % classes for i in range(90)]
        (folder / "train.parquet").write_bytes(parquet_bytes({**texts, "label": labels}))
        said = complaint("prepare", "--env", env, "--data", tmp_path)
        assert f"train.parquet, row 45: label {wrong} is outside the declared set ({', '.join(task.labels)})" in said
    for column in texts:
        rest = {key: value for key, value in texts.items() if key != column}
        (folder / "train.parquet").write_bytes(parquet_bytes({**rest, "label": [i % classes for i in range(90)]}))
        said = complaint("prepare", "--env", env, "--data", tmp_path)
        assert f"train.parquet, row 1: column {column!r} is missing" in said


@pytest.mark.usefixtures("light_checkpoint")
def test_paths_that_lead_nowhere_are_named(complaint, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("text,label\n")
    (tmp_path / "good.csv").write_bytes(text_file(good()))
    own = ("prepare", "--env", "KnowledgeSelect", "--data")
    assert "no such file or folder" in complaint(*own, tmp_path / "missing.csv")
    assert "no such file or folder" in complaint("prepare", *SST2, "--data", tmp_path / "missing")
    assert "no such file or folder" in complaint(*own, f"{tmp_path / 'good.csv'},{tmp_path / 'missing.csv'}")
    assert "no train.* here" in complaint(*own, tmp_path / "empty")
    assert "sst2/train.* or train.* here" in complaint("prepare", *SST2, "--data", tmp_path / "empty")
    said = complaint(*own, tmp_path / "notes.txt")
    assert "notes.txt: unknown file type '.txt'; use " + ", ".join(SUFFIXES) in said
    assert "files are expected" in complaint(*own, ",".join([str(tmp_path / "good.csv")] * 3))
    assert "files are expected" in complaint(*own, f"{tmp_path / 'empty'},{tmp_path / 'good.csv'}")
    for data in ("auto", "hub", "embedded"):
        assert "own data needs --data PATH" in complaint(*own, data)


@pytest.mark.usefixtures("light_checkpoint")
@pytest.mark.parametrize("name", [n for n in TASKS.names() if n not in ("SST2", "RottenTomatoes")])
def test_a_task_without_embedded_data_says_which_have_some(complaint, name):
    said = complaint("prepare", "--env", f"KnowledgeSelect-{name}", "--data", "embedded")
    assert "only SST2, RottenTomatoes" in said


@pytest.mark.slow
def test_a_process_with_a_bad_file_prints_one_line_and_exits_with_2(tmp_path):
    embedded_or_skip(embedded.minilm)
    (tmp_path / "train.csv").write_bytes(text_file(good()).replace(b"kis 7,", b"kis \xe9,"))
    done = refused(tmp_path, "train", "--env", "KnowledgeSelect", "--agent", "ppo", "--data", str(tmp_path))
    assert done.stderr.endswith("train.csv, line 9: not UTF-8 text; save the file as UTF-8\n")
