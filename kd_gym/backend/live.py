"""Live teachers: they run in the loop, their parameters are plain tensors, and a controller may train them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from kd_gym.backend.checkpoint import load_bert
from kd_gym.backend.encoder import (
    Architecture,
    Dropout,
    Encoded,
    Params,
    Precision,
    encode,
    forward_flops,
    keep,
)
from kd_gym.backend.optim import AdamWState, adamw_step, gradient_norms
from kd_gym.backend.teacher import load_teacher, summary_place, teacher_inputs
from kd_gym.errors import KDGymError
from kd_gym.tasks.tokens import Tokens

TeacherKind = Literal["stored", "live", "untuned"]


class Network(Protocol):
    """A classifier as a function of its parameters, each [N, ...]; `depth` is its number of layers."""

    depth: int

    def __call__(self, p: Params, tokens: Tokens, dropout: Dropout, detail: bool, precision: Precision) -> Encoded:
        """What it says of tokens [N, B, T], in the type of its parameters."""

    def flops(self, batch: int, width: int, detail: bool) -> int:
        """Floating point operations of one teacher's forward pass."""


class BertNetwork:
    """A BERT-family teacher: the students' own encoder, so that N teachers are one stack too."""

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self.depth = arch.layers

    def __call__(self, p: Params, tokens: Tokens, dropout: Dropout, detail: bool, precision: Precision) -> Encoded:
        """What it says of tokens [N, B, T]."""
        plain = detail or dropout is not keep
        return encode(p, self.arch, tokens, "plain" if plain else "fused", dropout, detail, precision)

    def flops(self, batch: int, width: int, detail: bool) -> int:
        """Floating point operations of one teacher's forward pass."""
        return forward_flops(self.arch, batch, width, detail)


class HubNetwork:
    """Any other `AutoModelForSequenceClassification`, through `torch.func.functional_call`; one student alone."""

    def __init__(self, folder: Path, vocabulary: Tensor, device: torch.device) -> None:
        self.model = load_teacher(folder, device).eval()
        self.vocabulary = vocabulary
        self.place = summary_place(self.model.config)
        self.depth = int(self.model.config.num_hidden_layers)

    def __call__(self, p: Params, tokens: Tokens, dropout: Dropout, detail: bool, precision: Precision) -> Encoded:
        """What it says of tokens [1, B, T]."""
        if detail or dropout is not keep or len(tokens.ids) != 1:
            raise KDGymError(
                f"a live {self.model.config.model_type} teacher has one student, no dropout and no token-level states; "
                "take a BERT checkpoint"
            )
        inputs = teacher_inputs(Tokens(*(part[0] for part in tokens)), self.vocabulary, self.model.config)
        own = {name: value[0] for name, value in p.items()}
        with torch.autocast(tokens.ids.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            said = functional_call(self.model, own, kwargs={**inputs, "output_hidden_states": True})
        cls = torch.stack([state[:, self.place] for state in said.hidden_states[1:]])
        whole = Encoded(said.logits[None], cls[None], said.hidden_states[0][None])
        return whole.to(next(iter(own.values())).dtype)  # an embedding that ends in a product is in bfloat16 itself

    def flops(self, batch: int, width: int, detail: bool) -> int:
        """Two for each weight and token."""
        weights = sum(int(p.numel()) for name, p in self.model.named_parameters() if "embed" not in name)
        return 2 * batch * width * weights


def open_teacher(
    folder: Path,
    vocabulary: Tensor,
    classes: int,
    device: torch.device,
    untuned: bool,
    layers: int | None = None,
) -> tuple[Network, dict[str, Tensor]]:
    """The network of a checkpoint folder and its parameters (no leading axis), under the trimmed vocabulary.

    With `untuned`, the classifier is zero: every class is as likely as any other; and of the pretrained body the lowest
    `layers` alone are there.

    Raises:
        KDGymError: `untuned`, and the checkpoint is not of the BERT family.
    """
    try:
        arch, params = load_bert(folder)
    except KDGymError:
        if untuned:
            raise
        network = HubNetwork(folder, vocabulary, device)
        return network, {name: value.detach() for name, value in network.model.named_parameters()}
    params["word"] = params["word"][vocabulary]
    if untuned:
        arch = replace(arch, classes=classes, layers=layers or arch.layers)
        params = {k: v for k, v in params.items() if not k[0].isdigit() or int(k.partition(".")[0]) < arch.layers}
        h, random = arch.hidden, torch.Generator().manual_seed(0)
        fresh = {"pooler.weight": torch.randn(h, h, generator=random) * 0.02, "pooler.bias": torch.zeros(h)}
        params = (
            fresh | params | {"classifier.weight": torch.zeros(h, classes), "classifier.bias": torch.zeros(classes)}
        )
    return BertNetwork(replace(arch, vocabulary=len(vocabulary))), params


class LiveTeacher:
    """The teachers of N students, one each, with an optimiser of their own.

    Args:
        network: the function.
        starts: the parameters (no leading axis) that a teacher has after reset, by the name that a context gives.
        students: N.
        untuned: whether it starts without any knowledge of the task: then no scale of a loss can be measured on it,
            and its students' heads start at zero too, as in LGTM.
        device: where it lives.
        dtype: of its parameters.
        precision: what its layers compute in.
    """

    def __init__(
        self,
        network: Network,
        starts: Mapping[str, Params],
        students: int,
        untuned: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        precision: Precision = "float32",
    ) -> None:
        self.network = network
        self.untuned = untuned
        self.precision = precision
        self._starts = {name: {k: v.to(device, dtype) for k, v in one.items()} for name, one in starts.items()}
        first = next(iter(self._starts.values()))
        self.params: Params = {
            name: value.unsqueeze(0).repeat(students, *[1] * value.dim()).requires_grad_()
            for name, value in first.items()
        }
        self.adam = AdamWState.zeros(self.params)

    def fork(self, students: int) -> "LiveTeacher":
        """The same for so many other students, at the start."""
        first = next(iter(self.params.values()))
        return LiveTeacher(
            self.network, self._starts, students, self.untuned, first.device, first.dtype, self.precision
        )

    @property
    def depth(self) -> int:
        """The number of layers."""
        return self.network.depth

    def start(self, name: str) -> Params:
        """The parameters (no leading axis) of the teacher of this name after reset."""
        return self._starts[name]

    @torch.no_grad()
    def reset(self, slot: int, name: str) -> None:
        """Start again with the teacher of this name."""
        for key, value in self.params.items():
            value[slot] = self._starts[name][key]
            self.adam.mean[key][slot] = 0
            self.adam.square[key][slot] = 0
        self.adam.step[slot] = 0

    def __call__(
        self,
        tokens: Tokens,
        slots: list[int] | None = None,
        dropout: Dropout = keep,
        detail: bool = False,
    ) -> Encoded:
        """What the teachers of these students (all by default) say of their tokens [n, B, T]."""
        everyone = slots is None or slots == list(range(len(self.adam.step)))
        own = self.params if everyone else {name: value[slots] for name, value in self.params.items()}
        return self.network(own, tokens, dropout, detail, self.precision)

    def step(self, gradients: Params, rate: float, decay: float = 0.0, clip: float = torch.inf) -> None:
        """One AdamW step of all teachers; parameters without a gradient stay as they are."""
        norms = gradient_norms(gradients)
        rates = torch.full((len(norms),), rate)
        moved = {name: self.params[name] for name in gradients}
        adamw_step(moved, gradients, self.adam, rates, norms, clip, decay)
