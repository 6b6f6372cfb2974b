"""Figures of policies."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kd_gym.envs.render import COLOURS, heat_map


def weights_over_progress(names: Sequence[str], paths: Sequence[NDArray[np.float64]]) -> Figure:
    """The mean of each weight over the progress of an episode: lines with a band of one deviation, or a map where the
    weights are many.

    Args:
        names: the D weights.
        paths: one [decisions, D] array of weights for each episode.
    """
    length = min(len(path) for path in paths)
    stacked = np.stack([path[:length] for path in paths])
    mean, spread = stacked.mean(0), stacked.std(0)
    many = len(names) > len(COLOURS)
    figure = Figure(figsize=(6.4, 4.8 if many else 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if many:
        heat_map(axes, names, mean, 1)
        axes.set(xlabel="progress of the episode")
        return figure
    at = (np.arange(length) + 0.5) / length
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        axes.plot(at, mean[:, i], color=colour, label=name, marker="o", markersize=3)
        low, high = mean[:, i] - spread[:, i], mean[:, i] + spread[:, i]
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="progress of the episode", ylabel="weight")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure
