"""Figures of policies."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kd_gym.envs.render import COLOURS


def weights_over_progress(names: Sequence[str], paths: Sequence[NDArray[np.float64]]) -> Figure:
    """The mean weight of each knowledge type over the progress of an episode, with the band of one deviation.

    Args:
        names: the K knowledge types.
        paths: one [decisions, K] array of weights for each episode.
    """
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    length = min(len(path) for path in paths)
    stacked = np.stack([path[:length] for path in paths])
    at = (np.arange(length) + 0.5) / length
    for i, name in enumerate(names):
        mean, spread = stacked[..., i].mean(0), stacked[..., i].std(0)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(at, mean, color=colour, label=name, marker="o", markersize=3)
        axes.fill_between(at, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="progress of the episode", ylabel="weight")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure
