"""What a distillation run is at one moment: plain tensors and JSON, on disk as safetensors, never pickle."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """A fact about an episode that its controller is not told.

    Attributes:
        name: how tables call it.
        label_noise: the probability that a training label is another class.
        train_share: the part of `train` that the student sees.
        teachers: which teacher set answers (see the id's page).
        rate: a factor on the student's learning rate.
    """

    name: str = "default"
    label_noise: float = 0.0
    train_share: float = 1.0
    teachers: str = "full"
    rate: float = 1.0


@dataclass(frozen=True)
class State:
    """Parameters, heads, moments, counters and scales of some students and of their live teachers, who they are, and
    why they failed, if they did.

    Row order and label noise are functions of seed, context and update, so `update` is the whole data cursor and no
    generator has a state of its own.
    """

    tensors: dict[str, Tensor]
    seeds: list[int]
    contexts: list[Context]
    reasons: list[str]

    def save(self, file: Path) -> None:
        """Write one safetensors file."""
        about = {"seeds": self.seeds, "contexts": [asdict(c) for c in self.contexts], "reasons": self.reasons}
        tensors = {name: value.contiguous() for name, value in self.tensors.items()}
        save_file(tensors, file, metadata={"kd_gym": json.dumps(about)})

    @classmethod
    def load(cls, file: Path) -> "State":
        """Read what `save` wrote."""
        with safe_open(file, framework="pt") as opened:
            about = json.loads(opened.metadata()["kd_gym"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        return cls(tensors, about["seeds"], [Context(**c) for c in about["contexts"]], about["reasons"])
