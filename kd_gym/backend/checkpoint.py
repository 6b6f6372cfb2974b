"""Weights from and to Hugging Face BERT checkpoints, and the first weights of a student."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kd_gym.backend.encoder import Architecture, Params, parameter_shapes
from kd_gym.backend.knowledge import matched_layers
from kd_gym.errors import KDGymError

_EMBEDDINGS = {
    "word": "embeddings.word_embeddings.weight",
    "position": "embeddings.position_embeddings.weight",
    "segment": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "q": ("attention.self.query",),
    "kv": ("attention.self.key", "attention.self.value"),
    "out": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "norm2": ("output.LayerNorm",),
}


def _hub_names(arch: Architecture) -> dict[str, list[str]]:
    """Our name -> the checkpoint's names (without the `bert.` prefix) whose tensors stand beside each other in it."""
    names = {ours: [theirs] for ours, theirs in _EMBEDDINGS.items()}
    for i in range(arch.layers):
        for part in ("weight", "bias"):
            for ours, theirs in _LAYER.items():
                names[f"{i}.{ours}.{part}"] = [f"encoder.layer.{i}.{name}.{part}" for name in theirs]
    return names | {f"pooler.{part}": [f"pooler.dense.{part}"] for part in ("weight", "bias")}


def _turn(name: str, value: Tensor) -> Tensor:
    """A matrix from torch's [out, in] to our [in, out], or back; anything else as it is."""
    return value.T if value.dim() == 2 and name.endswith("weight") else value


def load_bert(folder: Path) -> tuple[Architecture, dict[str, Tensor]]:
    """The architecture and parameters (one student, no leading axis) of a BERT checkpoint folder.

    A classifier or a pooler that the checkpoint lacks is left out.

    Raises:
        KDGymError: the checkpoint is not of the BERT family.
    """
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "bert":
        raise KDGymError(f"{folder.name}: a student needs a BERT checkpoint, this one is {config.get('model_type')!r}")
    found = load_file(folder / "model.safetensors")
    tensors = {  # BERT-base has LayerNorm's old names, and what is tuned from it is saved under them
        name.removeprefix("bert.").replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): value.float()
        for name, value in found.items()
    }
    arch = Architecture(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        classes=len(tensors.get("classifier.bias", (0, 0))),
        positions=config["max_position_embeddings"],
        segments=config["type_vocab_size"],
        eps=config["layer_norm_eps"],
    )
    names = _hub_names(arch) | {k: [k] for k in ("classifier.weight", "classifier.bias")}
    params = {
        ours: _turn(ours, torch.cat([tensors[t] for t in theirs])).contiguous()
        for ours, theirs in names.items()
        if theirs[0] in tensors or not ours.startswith(("pooler", "classifier"))
    }
    return arch, params


def cut_layers(params: Params, layers: int, whole: int) -> Params:
    """The parameters (no leading axis) of so many evenly spaced layers of `whole`, and all that is of no layer."""
    kept = {name: value for name, value in params.items() if not name[0].isdigit()}
    for i, taken in enumerate(matched_layers(layers, whole)):
        prefix = f"{taken}."
        kept |= {f"{i}.{name[len(prefix) :]}": v for name, v in params.items() if name.startswith(prefix)}
    return kept


def hub_config(arch: Architecture, labels: tuple[str, ...]) -> dict[str, Any]:
    """The `config.json` of a student."""
    return {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "num_hidden_layers": arch.layers,
        "hidden_size": arch.hidden,
        "num_attention_heads": arch.heads,
        "intermediate_size": arch.intermediate,
        "vocab_size": arch.vocabulary,
        "max_position_embeddings": arch.positions,
        "type_vocab_size": arch.segments,
        "layer_norm_eps": arch.eps,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


@dataclass(frozen=True)
class StudentInit:
    """Where students start: what all seeds share, under the full vocabulary, and what each seed draws.

    `shared` are parameters taken from the default teacher. A student as wide as it takes its embeddings, pooler and
    layers (student layer i from teacher layer (i + 1) * L / l). A narrower one has for each word piece what the lower
    half of the teacher makes of it alone, projected on the first principal directions over the task's vocabulary
    (as model2vec does with a whole sentence encoder); positions and segments start at 0. The rest is drawn from the
    seed, the classifier always.
    """

    arch: Architecture
    shared: dict[str, Tensor]
    vocabulary: Tensor

    @classmethod
    def of(cls, teacher: Path, student: Architecture, vocabulary: Tensor, words: Callable[[], Tensor]) -> "StudentInit":
        """The start of students of this shape.

        Args:
            teacher: the folder of a BERT checkpoint.
            student: layers, widths and classes; vocabulary and positions follow from the teacher.
            vocabulary: the ids, in rising order, that the students' vocabulary is cut down to.
            words: gives the lower half's state of every word piece [V, H]; asked for narrower students only.
        """
        base, params = load_bert(teacher)
        arch = replace(
            student,
            vocabulary=len(vocabulary),
            positions=base.positions,
            segments=base.segments,
            eps=base.eps,
        )
        if arch.hidden > base.hidden or arch.layers > base.layers:
            raise KDGymError(f"a student of {arch.layers} x {arch.hidden} is larger than its teacher")
        if arch.hidden < base.hidden:
            states = words()
            centred = states - states[vocabulary].mean(0)
            used = centred[vocabulary].double()
            _, directions = torch.linalg.eigh(used.T @ used)
            word = centred @ directions.flip(1)[:, : arch.hidden].float()
            word = word * torch.where(
                word[vocabulary].pow(3).sum(0) < 0, -1.0, 1.0
            )  # eigenvectors come with either sign
            shared = {
                "word": word * params["word"].std() / word[vocabulary].std(),
                "position": torch.zeros(arch.positions, arch.hidden),
                "segment": torch.zeros(arch.segments, arch.hidden),
            }
        else:
            cut = cut_layers(params, arch.layers, base.layers)
            shared = {name: value for name, value in cut.items() if "classifier" not in name}
        return cls(arch, shared, vocabulary)

    def draw(self, seed: int) -> dict[str, Tensor]:
        """The first parameters of the student of this seed (no leading axis), under the trimmed vocabulary."""
        random = torch.Generator().manual_seed(seed)
        params = {}
        for name, shape in parameter_shapes(self.arch).items():
            if name == "word":
                params[name] = self.shared[name][self.vocabulary]
            elif name in self.shared:
                params[name] = self.shared[name]
            elif name.endswith("bias"):
                params[name] = torch.zeros(shape)
            elif "norm" in name:
                params[name] = torch.ones(shape)
            else:
                params[name] = torch.randn(shape, generator=random) * shape[0] ** -0.5
        return params

    def export(
        self, p: Params, index: int, folder: Path, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]
    ) -> None:
        """Write student `index` as a Hugging Face checkpoint under the full vocabulary.

        Word pieces that stand in no split keep the embeddings they started with.
        """
        one = {name: p[name][index].detach().cpu().float() for name in parameter_shapes(self.arch)}
        word = self.shared["word"].clone()
        word[self.vocabulary] = one["word"]
        one["word"] = word
        tensors = {k: _turn(k, one[k]).contiguous() for k in ("classifier.weight", "classifier.bias")}
        for ours, theirs in _hub_names(self.arch).items():
            parts = _turn(ours, one[ours]).chunk(len(theirs))
            tensors |= {f"bert.{name}": part.contiguous() for name, part in zip(theirs, parts, strict=True)}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))  # readable for all
        config = hub_config(replace(self.arch, vocabulary=len(word)), labels)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer.save_pretrained(folder)
