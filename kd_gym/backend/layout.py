"""Where the parameters of students lie: the short ones in two long tensors, since optimisers are slow on many."""

import math
from collections.abc import Mapping

import torch

from kd_gym.backend.encoder import Params
from kd_gym.backend.optim import decays

ALIGNED = 16  # floats of a cache line
LONG = 2**17  # elements from which on copying a gradient costs more than one tensor fewer saves


class Layout:
    """Parameters by name as views of fewer tensors: `matrices` [N, P], which decay, `biases` [N, Q] (norms and short
    tables too), which do not, and whatever is long or whose gradient is made apart (`word`) by its own name.

    Args:
        shapes: of every parameter of one student.
        long: elements from which on a parameter is a tensor of its own.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], long: int = LONG) -> None:
        self.shapes = dict(shapes)
        self.alone = [name for name, shape in shapes.items() if name == "word" or math.prod(shape) >= long]
        short = [name for name in shapes if name not in self.alone]
        self.groups = {
            "matrices": [name for name in short if decays(name)],
            "biases": [name for name in short if not decays(name)],
        }

    def zeros(self, students: int, dtype: torch.dtype, device: torch.device) -> Params:
        """The tensors."""

        def length(names: list[str]) -> int:
            return -(-sum(math.prod(self.shapes[name]) for name in names) // ALIGNED) * ALIGNED

        shapes = {name: self.shapes[name] for name in self.alone}
        shapes |= {group: (length(names),) for group, names in self.groups.items()}
        return {name: torch.zeros(students, *shape, dtype=dtype, device=device) for name, shape in shapes.items()}

    def views(self, packed: Params) -> Params:
        """Each parameter [N, ...] by name, in the order of the shapes; what is written to it is written to `packed`."""
        found = {name: packed[name].detach() for name in self.alone}
        for group, names in self.groups.items():
            sizes = [math.prod(self.shapes[name]) for name in names]
            parts = packed[group].detach()[:, : sum(sizes)].split(sizes, dim=1)
            found |= {name: part.unflatten(1, self.shapes[name]) for name, part in zip(names, parts, strict=True)}
        return {name: found[name] for name in self.shapes}

    def pack(self, values: Params, into: Params) -> Params:
        """Values by name as they lie: short ones are copied into the tensors `into`, long ones are taken as they are,
        and so is all else that `into` holds.
        """
        for group, names in self.groups.items():
            flat = [values[name].flatten(1) for name in names]
            torch.cat(flat, 1, out=into[group][:, : sum(part.shape[1] for part in flat)])
        return {name: values[name] for name in self.alone} | into
