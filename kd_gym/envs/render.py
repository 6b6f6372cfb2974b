"""What an episode looks like: a line of text, or a picture of its weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")  # Okabe and Ito


def ansi_line(info: dict[str, Any]) -> str:
    """The last decision in one line."""
    control = " ".join(f"{name} {weight:.2f}" for name, weight in info["control"].items())
    metric = info["reward_split"]
    return (
        f"update {info['updates']:4d} | {control} | reward split: cross-entropy {metric['cross_entropy']:.3f}, "
        f"accuracy {metric['accuracy']:.3f}"
    )


def heat_map(axes: Any, labels: Sequence[str], weights: NDArray[np.float64], width: float) -> None:
    """Weights [steps, D] in [0, 1] as a map with a line for each name: for more weights than there are colours."""
    axes.imshow(weights.T, cmap="viridis", vmin=0, vmax=1, aspect="auto", extent=(0, width, len(labels), 0))
    axes.set_yticks(np.arange(len(labels)) + 0.5, labels, fontsize=7)
    axes.figure.colorbar(axes.images[0], ax=axes, label="weight")


def weights_image(labels: Sequence[str], history: Sequence[NDArray[np.float64]], decisions: int) -> NDArray[np.uint8]:
    """The weights of each decision so far as an RGB picture [320, 480, 3]: stacked, or a map where they are many."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    weights = np.array(history).reshape(len(history), len(labels))
    if len(labels) > len(COLOURS):
        shown = weights if len(history) else np.full((1, len(labels)), np.nan)
        heat_map(axes, labels, shown, len(shown))
        axes.set(xlim=(0, decisions), xlabel="decision")
    else:
        bottom = np.zeros(len(history))
        for i, name in enumerate(labels):
            axes.bar(np.arange(len(history)) + 0.5, weights[:, i], 1, bottom, color=COLOURS[i], label=name)
            bottom += weights[:, i]
        axes.set(xlim=(0, decisions), ylim=(0, max(1, bottom.max(initial=0))), xlabel="decision", ylabel="weight")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
