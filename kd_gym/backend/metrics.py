"""Scores of predictions against labels, by the name that stands beside them in every table."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def accuracy(predictions: Labels, labels: Labels) -> float:
    """The share of right predictions."""
    return float((predictions == labels).mean())


def f1(predictions: Labels, labels: Labels) -> float:
    """F1 of class 1 (GLUE's MRPC and QQP); 0 where nothing is predicted or true."""
    hits = int(((predictions == 1) & (labels == 1)).sum())
    named = int((predictions == 1).sum() + (labels == 1).sum())
    return 2 * hits / named if named else 0.0


def mcc(predictions: Labels, labels: Labels) -> float:
    """Matthews' correlation for any number of classes (GLUE's CoLA); 0 where either side has one class only."""
    size = int(max(predictions.max(), labels.max())) + 1
    confusion = np.zeros((size, size))
    np.add.at(confusion, (labels, predictions), 1)
    true, named, total = confusion.sum(1), confusion.sum(0), confusion.sum()
    spread = (total**2 - (named**2).sum()) * (total**2 - (true**2).sum())
    return float((confusion.trace() * total - true @ named) / np.sqrt(spread)) if spread else 0.0


METRICS: dict[str, Callable[[Labels, Labels], float]] = {"accuracy": accuracy, "f1": f1, "mcc": mcc}
