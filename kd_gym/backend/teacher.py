"""Fine-tuning of teachers: any `AutoModelForSequenceClassification`, once per checkpoint, data and recipe."""

import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hub_logging

from kd_gym.errors import KDGymError
from kd_gym.files import build_once, cache_dir, digest, file_digest, write_json
from kd_gym.plugins import check_choice
from kd_gym.tasks.batches import Buckets, RowStream, flip_labels
from kd_gym.tasks.data import TaskData
from kd_gym.tasks.domains import DOMAINS, lesson
from kd_gym.tasks.task import Task
from kd_gym.tasks.tokens import Tokens, TokenSplit

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all
TEACHER_VERSION = 2  # a part of every teacher's key: raise it when a change here moves its weights
_EARLY = 0.1  # the part of a training after which its early checkpoint is kept
NoiseOn = Literal["all", "long"]
Stage = Literal["final", "early"]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class TeacherSpec:
    """The recipe of a teacher.

    Attributes:
        name: how tables call it.
        checkpoint: the pretrained model, a hub name or a folder.
        layers: how many of its lowest layers are used; None is all.
        epochs: passes over what it sees, unless `updates` end them; 0 takes the checkpoint as it is, already tuned.
        updates: updates at most.
        share: the part of `train` that it sees.
        domain: other texts that it sees instead of `train` (see `kd_gym.tasks.domains`).
        label_noise: the share of its labels that are flipped to another class.
        noise_on: whether any row may be flipped, or only those longer than the median: such a teacher is right on
            some inputs and wrong on others.
        stage: `final`, or `early`: a checkpoint of the same training after a tenth of it.
    """

    name: str
    checkpoint: str = MINILM
    layers: int | None = None
    epochs: float = 3.0
    updates: int = 5000
    learning_rate: float = 1e-4
    batch: int = 32
    seed: int = 0
    share: float = 1.0
    domain: str = ""
    label_noise: float = 0.0
    noise_on: NoiseOn = "all"
    stage: Stage = "final"

    def check(self) -> None:
        """Raise `KDGymError` for a value that no teacher can have."""
        if self.domain:
            DOMAINS.get(self.domain)
        check_choice("noise_on", self.noise_on, NoiseOn)
        check_choice("stage", self.stage, Stage)
        bounds = {
            "share": 0 < self.share <= 1,
            "label_noise": 0 <= self.label_noise < 1,
            "epochs": 0 <= self.epochs < math.inf,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "seed": self.seed >= 0,
            "updates": self.updates >= 1,
            "batch": self.batch >= 1,
            "layers": self.layers is None or self.layers >= 1,
        }
        for name, fine in bounds.items():
            if not fine:
                raise KDGymError(f"{name} cannot be {getattr(self, name)}")
        if self.epochs == 0 and self.layers:
            raise KDGymError("a teacher that comes tuned (epochs 0) keeps all of its layers")


def load_teacher(
    folder: Path, device: torch.device, classes: int | None = None, layers: int | None = None
) -> PreTrainedModel:
    """A teacher from its folder; with `classes`, a fresh head of so many (its weights from torch's global seed).

    Raises:
        KDGymError: the checkpoint lacks weights, other than those of a fresh head.
    """
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # a fresh head is meant, not a mishap
    hub_logging.disable_progress_bar()
    extra: dict[str, Any] = {"num_labels": classes, "num_hidden_layers": layers}
    extra = {name: value for name, value in extra.items() if value is not None}
    try:
        model, about = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **extra
        )
    finally:
        hub_logging.set_verbosity(level)
    body = [name for name in about["missing_keys"] if name.startswith(f"{model.base_model_prefix}.encoder.")]
    if classes is None and about["missing_keys"]:
        raise KDGymError(f"{folder} is not tuned for classification: it has no {sorted(about['missing_keys'])[0]}")
    if body:
        raise KDGymError(f"{folder} has fewer layers than that: it has no {sorted(body)[0]}")
    return model.to(device)


def teacher_inputs(tokens: Tokens, vocabulary: Tensor, config: PreTrainedConfig) -> dict[str, Tensor]:
    """A batch [B, T] as `transformers` takes it: the tokenizer's own ids, and what the model's family wants.

    XLNet reads its summary off the last place, so its padding goes to the left, and the summary token has a segment
    of its own; RoBERTa has only one segment.
    """
    ids, types, mask = vocabulary.to(tokens.ids.device)[tokens.ids], tokens.types, tokens.mask
    if config.model_type == "xlnet":
        length, places = mask.sum(1, keepdim=True), torch.arange(mask.shape[1], device=mask.device)
        types = types.masked_fill(places == length - 1, 2)
        order = (places + length) % mask.shape[1]
        ids, types, mask = (t.gather(1, order) for t in (ids, types, mask))
    if getattr(config, "type_vocab_size", 2) < 2:
        types = torch.zeros_like(types)
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask.long()}


def summary_place(config: PreTrainedConfig) -> int:
    """Where a model's summary token stands: first, or last for XLNet."""
    return -1 if config.model_type == "xlnet" else 0


def _labels(spec: TeacherSpec, train: TokenSplit, classes: int) -> Tensor:
    """The labels [rows] that a teacher learns."""
    flipped = flip_labels(train.labels, classes, spec.label_noise, spec.seed)
    return (
        flipped if spec.noise_on == "all" else torch.where(train.length > train.length.median(), flipped, train.labels)
    )


def fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 here."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))  # older GPUs only pretend
    if not hasattr(torch.cpu, "get_capabilities"):  # newer than the oldest torch that is supported
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _fine_tune(
    spec: TeacherSpec,
    checkpoint: Path,
    data: TaskData,
    device: torch.device,
    progress: Progress,
    folder: Path,
) -> None:
    """Train and write `final/` and `early/` checkpoints and `teacher.json` into `folder`."""
    begin = time.perf_counter()
    train, vocabulary = lesson(spec.domain, data)
    labels = _labels(spec, train, data.classes).to(device)
    train = train.to(device)
    buckets = Buckets(train.length, spec.batch, key=spec.seed)
    stream = RowStream(buckets, spec.seed, spec.share)
    mixed = fast_bfloat16(device)  # about twice as fast; weights and optimiser stay in float32
    updates = min(spec.updates, max(1, round(spec.epochs * spec.share * len(train) / spec.batch)))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(spec.seed)  # dropout and the fresh head
        model = load_teacher(checkpoint, device, data.classes, spec.layers).train()
        model.config.id2label = dict(enumerate(data.task.labels))
        model.config.label2id = {label: i for i, label in enumerate(data.task.labels)}
        optimiser = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=0.01, fused=True)
        warm = max(1, updates // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda u: min((u + 1) / warm, (updates - u) / max(1, updates - warm))
        )
        for update in range(updates):
            rows, width = stream.rows(update)
            chosen = torch.from_numpy(rows).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                logits = model(**teacher_inputs(train.batch(chosen, width), vocabulary, model.config)).logits
            loss = F.cross_entropy(logits.float(), labels[chosen])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            if update + 1 == max(1, round(_EARLY * updates)):
                model.save_pretrained(folder / "early")
            progress(f"teacher {spec.name}: fine-tuning", update + 1, updates)
    model.save_pretrained(folder / "final")
    for name in ("early", "final"):
        data.tokenizer.save_pretrained(folder / name)
    seconds = time.perf_counter() - begin
    about = {"spec": asdict(spec), "updates": updates, "bfloat16": mixed, "seconds": round(seconds, 1)}
    write_json(folder / "teacher.json", about)


def fine_tuned(spec: TeacherSpec, checkpoint: Path, data: TaskData, device: torch.device, progress: Progress) -> Path:
    """The folder of a teacher's checkpoint, from the cache or trained now.

    Args:
        spec: the recipe.
        checkpoint: the folder of the pretrained model, under whose tokenizer `data` was prepared.

    Raises:
        KDGymError: `spec` takes the checkpoint as it is, and its classes are not the task's.
    """
    if spec.epochs == 0:
        check_labels(checkpoint, data.task)
        return checkpoint
    recipe = {k: v for k, v in asdict(spec).items() if k not in ("name", "checkpoint", "stage")}
    weights = file_digest(checkpoint / "model.safetensors")
    key = digest(TEACHER_VERSION, recipe, weights, data.tokenizer_hash, data.fingerprint)
    folder = cache_dir() / "teachers" / f"{data.task.name}-{key}"
    return build_once(folder, functools.partial(_fine_tune, spec, checkpoint, data, device, progress)) / spec.stage


def check_labels(checkpoint: Path, task: Task) -> None:
    """Raise unless a tuned checkpoint has the task's classes, and in the task's order where it names them."""
    try:
        config = json.loads((checkpoint / "config.json").read_text())
    except (OSError, ValueError):
        raise KDGymError(f"{checkpoint} holds no checkpoint: its config.json cannot be read") from None
    named = {int(i): str(label) for i, label in config.get("id2label", {}).items()} or {0: "LABEL_0", 1: "LABEL_1"}
    theirs = [named[i] for i in sorted(named)]
    if len(theirs) != len(task.labels):
        raise KDGymError(f"teacher {checkpoint} has {len(theirs)} classes, task {task.name} has {len(task.labels)}")
    plain = [label.lower() for label in theirs]
    if set(plain) == {label.lower() for label in task.labels} and plain != [label.lower() for label in task.labels]:
        raise KDGymError(
            f"teacher {checkpoint} has its classes in another order ({', '.join(theirs)}) than task {task.name} "
            f"({', '.join(task.labels)}); reorder its head"
        )


def training_seconds(teacher: Path) -> float:
    """How long the fine-tuning of this teacher took; 0 for one that came tuned."""
    file = teacher.parent / "teacher.json"
    return float(json.loads(file.read_text())["seconds"]) if file.exists() else 0.0


@torch.inference_mode()
def word_states(folder: Path, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> torch.Tensor:
    """What the lower half of a teacher makes of each word piece between [CLS] and [SEP]: [V, H], kept on disk."""

    def build(target: Path) -> None:
        model = load_teacher(folder, device).eval()
        half = model.config.num_hidden_layers // 2
        states = []
        for pieces in torch.arange(model.config.vocab_size, device=device).split(512):
            first, last = (torch.full_like(pieces, i) for i in (tokenizer.cls_token_id, tokenizer.sep_token_id))
            output = model(torch.stack([first, pieces, last], 1), output_hidden_states=True)
            states.append(output.hidden_states[half][:, 1].cpu())
        save_file({"states": torch.cat(states)}, target / "words.safetensors")

    key = digest(file_digest(folder / "model.safetensors"))
    kept: dict[str, torch.Tensor] = load_file(build_once(cache_dir() / "words" / key, build) / "words.safetensors")
    return kept["states"]
