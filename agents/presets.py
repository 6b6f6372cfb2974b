"""The classical baselines that are nothing but knowledge types, weights and a temperature, as one table.

Weights are those of the papers as far as they are known, divided by their sum; losses are not scaled. KD, PKD, SKD,
DIST and RKD are among the ten baselines of LGTM's paper.
"""

from collections.abc import Mapping
from typing import ClassVar

from kd_gym.agents.heuristics import FixedWeights
from kd_gym.agents.protocol import Array

Weights = Mapping[str, float]


class Preset(FixedWeights):
    """Fixed weights of its own knowledge types; those of `later` in the second half of the run, where there are any."""

    fits = ("KnowledgeSelect",)
    weights: ClassVar[Weights] = {}
    later: ClassVar[Weights] = {}

    def act(self, observation: Array) -> Array:
        """From the progress."""
        half = self.later and self.see(observation, "progress")[0] >= 0.5
        return self._action(dict(self.later if half else self.weights))


def preset(
    name: str, source: str, weights: Weights, later: Weights | None = None, tau: float = 4.0, live: bool = False
) -> type[Preset]:
    """The controller of one row of the table; `live` where a knowledge type needs the states of all tokens."""
    later = later or {}
    options = {"knowledge": ",".join(dict.fromkeys((*weights, *later))), "tau": tau, "scales": False}
    about = {"weights": weights, "later": later, "options": {**options, **({"teacher": "live"} if live else {})}}
    return type(name, (Preset,), {"__doc__": f"{source}\n\n{Preset.__doc__}", "__module__": __name__, **about})


KD = preset("KD", "Soft targets and labels, half each (Hinton et al., 2015).", {"hard": 0.5, "response": 0.5})
PKDSkip = preset(
    "PKDSkip",
    "KD and [CLS] states of evenly spaced layers, beta = 100 (PKD-Skip, Sun et al., 2019).",
    {"hard": 0.5, "response": 0.5, "cls-skip": 100.0},
)
PKDLast = preset(
    "PKDLast",
    "KD and [CLS] states of the last layers but one, beta = 100 (PKD-Last, Sun et al., 2019).",
    {"hard": 0.5, "response": 0.5, "cls-last": 100.0},
)
SKD = preset(
    "SKD", "Soft targets of normalised logits (SKD, Guo et al., 2020, recalled).", {"hard": 0.5, "spherical": 0.5}
)
DIST = preset(
    "DIST",
    "Correlations of classes and of samples, twice as heavy as the labels (DIST, Huang et al., 2022).",
    {"hard": 1.0, "correlation": 2.0},
    tau=1.0,
)
RKD = preset(
    "RKD",
    "Distances (25) and angles (50) within the batch, with the labels (RKD, Park et al., 2019).",
    {"hard": 1.0, "geometry": 25.0},
)
MiniLM = preset(
    "MiniLM",
    "Relations among queries, keys and values of the last layer, with the labels (MiniLMv2, Wang et al., 2021).",
    {"hard": 0.5, "self-relation": 0.5},
    live=True,
)
TinyBERT = preset(
    "TinyBERT",
    "Attention maps and states of all tokens first, soft targets after that (TinyBERT, Jiao et al., 2020).",
    {"attention": 0.5, "hidden": 0.5},
    {"response": 1.0},
    tau=1.0,
    live=True,
)
AnnealedKD = preset(
    "AnnealedKD",
    "Logits times a factor that rises to 1, then the labels alone (Annealing-KD, Jafari et al., 2021).",
    {"annealed": 1.0},
    {"hard": 1.0},
)
