"""Figures of policies and scores. They take plain numbers, and follow the theme that is set while they are drawn."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kd_gym.envs.render import COLOURS, heat_map

Array = NDArray[np.float64]
Theme = Literal["light", "dark"]
_INK: dict[Theme, tuple[str, str, str]] = {
    "light": ("#1f2328", "#d0d7de", "#ffffff"),
    "dark": ("#e6edf3", "#3d444d", "#0d1117"),
}


def drawn(draw: Callable[[], Figure], theme: Theme) -> Figure:
    """A figure in the colours of a theme."""
    ink, faint, ground = _INK[theme]
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = dict.fromkeys(names, ink) | {
        "figure.facecolor": ground,
        "axes.facecolor": ground,
        "grid.color": faint,
        "font.size": 10,
    }
    with mpl.rc_context(settings):
        return draw()


def as_svg(figure: Figure) -> str:
    """A figure as a data address of an SVG picture."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "kd-gym"}):  # the same file from the same numbers
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def save_png(figure: Figure, file: Path) -> None:
    """A figure as a PNG file of twice the size on the screen."""
    figure.savefig(file, format="png", dpi=200)


def _figure(width: float = 7.2, height: float = 3.6) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Axes, **labels: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(**labels)


# ---------------------------------------------------------------------- policies


def _weights(axes: Axes, names: Sequence[str], paths: Sequence[Array]) -> None:
    length = max(len(path) for path in paths)
    stacked = np.stack([path for path in paths if len(path) == length])  # not those whose student failed early
    mean, spread = stacked.mean(0), stacked.std(0)
    if len(names) > len(COLOURS):
        heat_map(axes, list(names), mean, 1)
        axes.set(xlabel="progress of the episode")
        return
    at = (np.arange(length) + 0.5) / length
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        axes.plot(at, mean[:, i], color=colour, label=name, marker="o", markersize=3)
        low, high = mean[:, i] - spread[:, i], mean[:, i] + spread[:, i]
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
    _plain(axes, xlim=(0, 1), ylim=(0, 1), xlabel="progress of the episode", ylabel="weight")


def weights_by_context(names: Sequence[str], paths: Mapping[str, Sequence[Array]]) -> Figure:
    """The mean of each weight over the progress of an episode, in one panel for each context: lines with a band of one
    deviation, or a map where the weights are many.

    Args:
        names: the D weights.
        paths: by context, one [decisions, D] array of weights for each episode.
    """
    many, columns = len(names) > len(COLOURS), min(3, len(paths))
    rows = -(-len(paths) // columns)
    figure = _figure(6.4 if columns == 1 else 3.4 * columns, (4.8 if many else 3.2) * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (context, found) in zip(grid.flat, paths.items(), strict=False):
        _weights(axes, names, found)
        axes.set_title(f"{context} ({len(found)} episodes)", fontsize=10)
    for axes in list(grid.flat)[len(paths) :]:
        axes.set_visible(False)
    if not many:
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=min(len(names), 4 * columns), loc="outside upper center", frameon=False)
    return figure


def reward_terms(terms: Mapping[str, Sequence[float]]) -> Figure:
    """The mean of each term of the reward at each decision, as stacked bars."""
    figure = _figure()
    axes = figure.add_subplot()
    length = len(next(iter(terms.values())))
    at, up, down = np.arange(1, length + 1), np.zeros(length), np.zeros(length)
    for (name, values), colour in zip(terms.items(), COLOURS, strict=False):
        height = np.asarray(values)
        axes.bar(at, height, bottom=np.where(height >= 0, up, down), color=colour, label=name.replace("_", " "))
        up, down = up + height.clip(min=0), down + height.clip(max=0)
    axes.axhline(0, color=mpl.rcParams["axes.edgecolor"], linewidth=0.8)
    _plain(axes, xlabel="decision", ylabel="mean reward")
    axes.legend(frameon=False, ncols=3, loc="upper right")
    return figure


def decisions_worth(advantages: Sequence[float], values: Sequence[float], rewards: Sequence[float]) -> Figure:
    """What each decision of one episode was worth beside the uniform control's, and what the agent expected of the rest
    of the episode beside what came.
    """
    figure = _figure(7.2, 5.0 if values else 2.8)
    parts = figure.subplots(2 if values else 1, 1, sharex=True, squeeze=False)[:, 0]
    at = np.arange(1, len(advantages) + 1)
    colours = [COLOURS[0] if worth >= 0 else COLOURS[1] for worth in advantages]
    parts[0].bar(at, advantages, color=colours)
    parts[0].axhline(0, color=mpl.rcParams["axes.edgecolor"], linewidth=0.8)
    _plain(parts[0], ylabel="advantage over uniform", title="fall of cross-entropy beyond a fork under uniform")
    if values:
        parts[1].plot(at, values, color=COLOURS[0], marker="o", markersize=3, label="expected")
        came = np.cumsum(np.asarray(rewards)[::-1])[::-1]
        parts[1].plot(at, came, color=COLOURS[1], marker="o", markersize=3, label="came")
        _plain(parts[1], ylabel="rest of the return")
        parts[1].legend(frameon=False)
    parts[-1].set_xlabel("decision")
    return figure


def effect_of_weights(effects: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """What decisions brought beyond other controllers' at the same point, by the weight that they gave.

    Args:
        effects: for each weight its values, and the extra drop of cross-entropy of the same decisions.
    """
    columns = min(4, len(effects))
    rows = -(-len(effects) // columns)
    figure = _figure(2.4 * columns + 0.6, 2.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    edges = np.linspace(0, 1, 6)
    for axes, (name, (weights, drops)) in zip(grid.flat, effects.items(), strict=False):
        x, y = np.asarray(weights), np.asarray(drops)
        axes.scatter(x, y, s=6, alpha=0.25, color=COLOURS[0], linewidths=0, rasterized=True)
        place = np.clip(np.digitize(x, edges) - 1, 0, 4)
        filled = [i for i in range(5) if (place == i).sum() > 2]
        means = [y[place == i].mean() for i in filled]
        middles = [(edges[i] + edges[i + 1]) / 2 for i in filled]
        axes.plot(middles, means, color=COLOURS[1], marker="o", markersize=4)
        axes.axhline(0, color=mpl.rcParams["axes.edgecolor"], linewidth=0.8, linestyle=":")
        axes.set_title(name, fontsize=10)
        _plain(axes, xlim=(-0.05, 1.05))
    low, high = np.percentile(np.concatenate([np.asarray(d) for _, d in effects.values()]), [1, 99])
    grid[0, 0].set_ylim(low - 0.1 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9)
    for axes in list(grid.flat)[len(effects) :]:
        axes.set_visible(False)
    figure.supxlabel("weight given", fontsize=10)
    figure.supylabel("extra drop of cross-entropy", fontsize=10)
    return figure


# ---------------------------------------------------------------------- scores


class Curve(NamedTuple):
    """Values over steps."""

    steps: Sequence[float]
    values: Sequence[float]


def learning_curve(returns: Curve, select: Curve, metric: str, fixed: Mapping[str, float]) -> Figure:
    """Return of training episodes with that of fixed controls, and the score on `select`, over decisions."""
    figure = _figure(7.2, 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps, values = np.asarray(returns.steps, float), np.asarray(returns.values, float)
    upper.scatter(steps, values, s=8, color=COLOURS[0], alpha=0.35, linewidths=0)
    window = max(1, min(20, len(values) // 4))
    if len(values) >= 2 * window:
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        upper.plot(steps[window - 1 :], smooth, color=COLOURS[0], label=f"training episodes, mean of {window}")
    for (name, value), colour in zip(fixed.items(), COLOURS[1:], strict=False):
        upper.axhline(value, color=colour, linestyle="--", linewidth=1.2, label=name)
    upper.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.22))
    _plain(upper, ylabel="return")
    lower.plot(select.steps, select.values, color=COLOURS[1], marker="o", markersize=4)
    _plain(lower, xlabel="decisions", ylabel=f"select {metric}")
    return figure


class Point(NamedTuple):
    """A controller's score with half of its interval, what an episode costs, and whether it is a fixed control."""

    name: str
    cost: float
    score: float
    half: float
    fixed: bool


def score_against_cost(points: Sequence[Point], metric: str) -> Figure:
    """Scores over FLOPs; the Pareto front is what nothing cheaper beats."""
    figure = _figure(7.2, max(4.4, 0.19 * len(points)))
    axes = figure.add_subplot()
    best, front = -np.inf, []
    for point in sorted(points, key=lambda p: (p.cost, -p.score)):
        if point.score > best:
            best = point.score
            front.append(point)
    axes.step(
        [p.cost for p in front], [p.score for p in front], where="post", color=mpl.rcParams["grid.color"], zorder=0
    )
    for fixed, colour, marker, label in ((True, COLOURS[0], "o", "fixed"), (False, COLOURS[1], "D", "adaptive")):
        some = [p for p in points if p.fixed is fixed]
        if some:
            halves = [0.0 if np.isnan(p.half) else p.half for p in some]
            axes.errorbar(
                *([p.cost for p in some], [p.score for p in some], halves),
                fmt=marker, color=colour, label=label, markersize=5, linewidth=1, capsize=2, alpha=0.8,
            )  # fmt: skip
    costs = [p.cost for p in points]
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.5, max(costs) * 1.5)  # never so narrow that a difference of nothing looks like one
    ticks = np.geomspace(min(costs) / 1.2, max(costs) * 1.2, 4)
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    _plain(axes, xlabel="GFLOP of one episode", ylabel=f"report {metric}")
    _names_beside(axes, points)
    axes.legend(frameon=False, loc="lower left", fontsize=8)
    return figure


def _names_beside(axes: Axes, points: Sequence[Point]) -> None:
    """The names of all points in a column at the right, each with a line to its point, none above another."""
    low, high = axes.get_ylim()
    order = sorted(points, key=lambda p: p.score)
    gap = min(0.045, 0.97 / len(order))
    places = [(p.score - low) / (high - low) for p in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    places = [place - max(0.0, places[-1] - 1) for place in places]
    for point, place in zip(order, places, strict=True):
        axes.annotate(
            point.name, (point.cost, point.score), (1.02, place), textcoords="axes fraction", va="center", fontsize=8,
            arrowprops={"arrowstyle": "-", "color": mpl.rcParams["grid.color"], "linewidth": 0.6},
        )  # fmt: skip


class Difference(NamedTuple):
    """A paired difference with half of its interval."""

    name: str
    mean: float
    half: float


def differences(rows: Sequence[Difference], what: str, lower_is_better: bool = False) -> Figure:
    """Paired differences with their intervals: blue where better, and filled where the interval excludes zero."""
    figure = _figure(7.2, 0.9 + 0.3 * len(rows))
    axes = figure.add_subplot()
    for at, row in enumerate(reversed(rows)):
        half = 0.0 if np.isnan(row.half) else row.half
        sure = abs(row.mean) > half > 0
        colour = COLOURS[0] if (row.mean < 0) == lower_is_better else COLOURS[1]
        axes.errorbar(
            *(row.mean, at), xerr=half, color=colour, marker="o", capsize=3,
            markerfacecolor=colour if sure else mpl.rcParams["axes.facecolor"],
        )  # fmt: skip
    axes.axvline(0, color=mpl.rcParams["axes.edgecolor"], linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    _plain(axes, xlabel=what)
    return figure


def profiles(levels: Sequence[float], found: Mapping[str, Sequence[float]]) -> Figure:
    """The part of all runs above each level of the normalised score, a line for each controller."""
    figure = _figure(7.2, max(4.0, 0.2 * len(found)))
    axes = figure.add_subplot()
    styles = ("-", "--", ":", "-.")
    for i, (name, values) in enumerate(found.items()):
        style = styles[i // len(COLOURS) % len(styles)]
        axes.plot(levels, values, style, color=COLOURS[i % len(COLOURS)], label=name)
    _plain(axes, xlabel="normalised score (0: uniform, 1: teacher)", ylabel="part of runs above", ylim=(0, 1.02))
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def matrix(rows: Sequence[str], columns: Sequence[str], values: Array, texts: Sequence[Sequence[str]]) -> Figure:
    """Numbers as a map with their texts; blue is above zero, orange below."""
    figure = _figure(2.0 + 1.6 * len(columns), 1.6 + 0.6 * len(rows))
    axes = figure.add_subplot()
    top = max(float(np.nanmax(np.abs(values), initial=0)), 1e-9)
    ground = mpl.rcParams["axes.facecolor"]
    colours = mpl.colors.LinearSegmentedColormap.from_list("", [COLOURS[1], ground, COLOURS[0]])
    axes.imshow(values, cmap=colours, vmin=-1.3 * top, vmax=1.3 * top, aspect="auto")
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            axes.text(j, i, text, ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(columns)), columns, rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    return figure
