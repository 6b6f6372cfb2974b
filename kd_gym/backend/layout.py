"""Where the parameters of students lie: in a few long tensors, since an optimiser is slow on many short ones."""

import math
from collections.abc import Mapping

import torch

from kd_gym.backend.encoder import Params
from kd_gym.backend.optim import decays

ALIGNED = 16  # floats of a cache line


class Layout:
    """Parameters by name as views of three tensors: `matrices` [N, P], which decay, `biases` [N, Q] (norms and short
    tables too), which do not, and `word` [N, V, H], whose gradient is that of a batch's rows.

    Args:
        shapes: of every parameter of one student.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        rest = [name for name in shapes if name != "word"]
        self.groups = {
            "matrices": [name for name in rest if decays(name)],
            "biases": [name for name in rest if not decays(name)],
        }

    def zeros(self, students: int, dtype: torch.dtype, device: torch.device) -> Params:
        """The long tensors."""

        def length(names: list[str]) -> int:
            return -(-sum(math.prod(self.shapes[name]) for name in names) // ALIGNED) * ALIGNED

        shapes = {group: (length(names),) for group, names in self.groups.items()} | {"word": self.shapes["word"]}
        return {group: torch.zeros(students, *shape, dtype=dtype, device=device) for group, shape in shapes.items()}

    def views(self, packed: Params) -> Params:
        """Each parameter [N, ...] by name, in the order of the shapes; what is written to it is written to `packed`."""
        found = {"word": packed["word"].detach()}
        for group, names in self.groups.items():
            sizes = [math.prod(self.shapes[name]) for name in names]
            parts = packed[group].detach()[:, : sum(sizes)].split(sizes, dim=1)
            found |= {name: part.unflatten(1, self.shapes[name]) for name, part in zip(names, parts, strict=True)}
        return {name: found[name] for name in self.shapes}

    def pack(self, values: Params, packed: Params) -> None:
        """Copy all but `word` into the long tensors."""
        for group, names in self.groups.items():
            flat = [values[name].flatten(1) for name in names]
            torch.cat(flat, 1, out=packed[group][:, : sum(part.shape[1] for part in flat)])
