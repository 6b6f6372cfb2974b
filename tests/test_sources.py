"""Own data and given folders, from files to splits."""

import os
from pathlib import Path

import pytest

from given import made_table, rows_of, write
from kd_gym.backend.tiny import tiny_tokenizer
from kd_gym.errors import KDGymError
from kd_gym.tasks.data import build_data
from kd_gym.tasks.readers import SUFFIXES, TEXT_COLUMNS, Rows
from kd_gym.tasks.sources import Source, load_source
from kd_gym.tasks.splits import SPLITS
from kd_gym.tasks.task import TASKS, Task

LABELS = {
    "two numbers": (0, 1),
    "two names": ("bad", "good"),
    "numbers from one": (1, 2, 3),
    "ten and more": tuple(range(12)),
    "names": ("anger", "joy", "none", "sorrow"),
    "negative numbers": (-1, 0, 1),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("columns", TEXT_COLUMNS, ids="-".join)
def test_own_data_is_read_from_every_format_and_under_every_column_name(tmp_path, suffix, columns):
    table = made_table(columns)
    path = write(tmp_path / f"mine{suffix}", {"id": list(range(60)), **table})
    found = load_source(None, str(path))
    assert found.train == rows_of(table, columns, (0, 1))
    assert found.validation is None
    assert found.task.pair == (len(columns) == 2)
    assert found.name.endswith(path.name)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_classes_of_own_data_are_its_labels_in_order(tmp_path, suffix, labels):
    table = made_table(labels=labels[::-1])
    found = load_source(None, str(write(tmp_path / f"mine{suffix}", table)))
    assert found.task.labels == tuple(str(label) for label in labels)
    assert found.train == rows_of(table, ("text",), labels)


def test_validation_files_use_the_classes_of_train(tmp_path):
    train = made_table(labels=("x", "y", "z"))
    validation = made_table(labels=("z", "x"), count=10, tag="other ")
    paths = write(tmp_path / "a.csv", train), write(tmp_path / "b.jsonl", validation)
    found = load_source(None, ",".join(map(str, paths)))
    assert found.train == rows_of(train, ("text",), ("x", "y", "z"))
    assert found.validation == rows_of(validation, ("text",), ("x", "y", "z"))


@pytest.mark.parametrize("stem", ["validation", "dev", "test", "validation_matched", "validation-00000-of-00001"])
def test_a_folder_of_own_data_is_a_train_file_and_a_validation_file(tmp_path, stem):
    write(tmp_path / "train.csv", made_table())
    write(tmp_path / f"{stem}.parquet", made_table(count=8, tag="other "))
    found = load_source(None, str(tmp_path))
    assert len(found.train) == 60
    assert found.validation is not None
    assert len(found.validation) == 8


def test_one_part_of_several_is_never_taken_for_the_whole(tmp_path):
    for part in range(2):
        write(tmp_path / f"train-0000{part}-of-00002.parquet", made_table())
    with pytest.raises(KDGymError, match=r"train-00000-of-00002.parquet: one of 2 parts; merge them"):
        load_source(None, str(tmp_path))


@pytest.mark.parametrize("where", ["KD_GYM_DATA", "--data", "--data TASK"])
@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_is_found_in_a_given_folder(tmp_path, monkeypatch, name, where):
    task = TASKS.get(name)
    folder = tmp_path / name.lower()
    numbers = tuple(range(len(task.labels)))
    train, validation = made_table(task.text, numbers), made_table(task.text, numbers[::-1], 9, "v")
    write(folder / "train.parquet", train)
    write(folder / f"{task.validation}.parquet", validation)
    monkeypatch.setenv("KD_GYM_DATA", str(tmp_path) if where == "KD_GYM_DATA" else "")
    data = {"KD_GYM_DATA": "auto", "--data": str(tmp_path), "--data TASK": str(folder)}[where]
    found = load_source(name, data)
    assert found.task == task
    assert found.train == rows_of(train, task.text, numbers)
    assert found.validation == rows_of(validation, task.text, numbers)
    assert found.name == f"files:{name.lower()}/train.parquet"


def test_labels_of_a_known_task_may_be_class_names(tmp_path):
    labels = ("entailment", "not_entailment")
    table = made_table(("sentence1", "sentence2"), labels)
    assert load_source("RTE", str(write(tmp_path / "rte.csv", table))).train == rows_of(
        table, ("sentence1", "sentence2"), labels
    )


def test_several_folders_are_searched_in_their_order(tmp_path, monkeypatch):
    for place, task, tag in (("a", "sst2", "A"), ("b", "sst2", "B"), ("b", "cola", "B")):
        write(tmp_path / place / task / "train.csv", made_table(("sentence",), tag=tag))
    (tmp_path / "b" / "rte").mkdir()
    monkeypatch.setenv("KD_GYM_DATA", os.pathsep.join(str(tmp_path / p) for p in ("missing", "", "a", "b")))
    assert load_source("SST2").train.texts[0][0].startswith("A")
    assert load_source("CoLA").train.texts[0][0].startswith("B")
    monkeypatch.setenv("KD_GYM_DATA", os.pathsep.join(str(tmp_path / p) for p in ("b", "a")))
    assert load_source("SST2").train.texts[0][0].startswith("B")


def built(train: Rows, validation: Rows | None, cache: Path | None):
    return build_data(Source(Task("Toy", ("text",), ("a", "b")), train, validation, "made"), tiny_tokenizer(), cache)


def numbered(begin: int, end: int) -> Rows:
    return Rows(
        [(f"ban ber {' '.join('kis' * (i % 7))} {i}",) for i in range(begin, end)], [i % 2 for i in range(begin, end)]
    )


def test_data_from_the_cache_is_the_data_that_was_built(tmp_path):
    train, validation = numbered(0, 200), numbered(200, 240)
    fresh = built(train, validation, None)
    for _ in range(2):
        kept = built(train, validation, tmp_path)
        assert kept.fingerprint == fresh.fingerprint
        assert kept.rows == fresh.rows
        for name in SPLITS:
            assert kept.split(name).flat.tolist() == fresh.split(name).flat.tolist()
            assert kept.split(name).labels.tolist() == fresh.rows[name].labels
    assert len([p for p in (tmp_path / "data").iterdir() if p.is_dir()]) == 1


def test_the_same_rows_cut_otherwise_into_train_and_validation_are_other_data(tmp_path):
    cuts = [
        built(numbered(0, 240), None, tmp_path),
        built(numbered(0, 200), numbered(200, 240), tmp_path),
        built(numbered(0, 180), numbered(180, 240), tmp_path),
    ]
    assert [len(cut.rows["report"]) for cut in cuts] == [24, 40, 60]
    assert len({cut.fingerprint for cut in cuts}) == 3


def test_another_text_or_label_is_another_fingerprint(tmp_path):
    base = numbered(0, 200)
    text, label = base.take(range(200)), base.take(range(200))
    text.texts[7] = ("another text",)
    label.labels[7] = 1 - label.labels[7]
    assert len({built(rows, None, tmp_path).fingerprint for rows in (base, text, label)}) == 3
    assert built(base.take(range(200)), None, None).fingerprint == built(base, None, tmp_path).fingerprint
