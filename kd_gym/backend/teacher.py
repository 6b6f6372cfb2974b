"""Fine-tuning of teachers: any `AutoModelForSequenceClassification`, once per checkpoint, data and recipe."""

import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hub_logging

from kd_gym.files import build_once, cache_dir, digest, file_digest, write_json
from kd_gym.tasks.batches import Buckets, RowStream, flip_labels
from kd_gym.tasks.data import TaskData
from kd_gym.tasks.tokens import Tokens

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all
TEACHER_VERSION = 1  # a part of every teacher's key: raise it when a change here moves its weights


@dataclass(frozen=True)
class TeacherSpec:
    """The recipe of a teacher.

    It sees `train` for at most `epochs` epochs and at most `updates` updates; `label_noise` is the share of its labels
    flipped to another class. `early` is the part of the training after which the early checkpoint is kept.
    """

    name: str
    epochs: float = 3.0
    updates: int = 5000
    learning_rate: float = 1e-4
    batch: int = 32
    seed: int = 0
    label_noise: float = 0.0
    early: float = 0.1


def load_teacher(folder: Path, device: torch.device, classes: int | None = None) -> PreTrainedModel:
    """A teacher from its folder; with `classes`, a fresh head of so many (its weights from torch's global seed)."""
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # a fresh head is meant, not a mishap
    hub_logging.disable_progress_bar()
    extra = {} if classes is None else {"num_labels": classes}
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **extra)
    finally:
        hub_logging.set_verbosity(level)
    return model.to(device)


def teacher_inputs(tokens: Tokens, data: TaskData) -> dict[str, torch.Tensor]:
    """A batch as `transformers` takes it, in the tokenizer's own ids."""
    vocabulary = data.vocabulary.to(tokens.ids.device)
    return {
        "input_ids": vocabulary[tokens.ids],
        "token_type_ids": tokens.types,
        "attention_mask": tokens.mask.long(),
    }


def fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 here."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
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
    train = data.split("train").to(device)
    labels = flip_labels(train.labels, data.classes, spec.label_noise, spec.seed)
    buckets = Buckets(train.length, spec.batch, key=spec.seed)
    stream = RowStream(buckets, spec.seed, share=1.0)
    mixed = fast_bfloat16(device)  # about twice as fast; weights and optimiser stay in float32
    updates = min(spec.updates, round(spec.epochs * len(train) / spec.batch))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(spec.seed)  # dropout and the fresh head
        model = load_teacher(checkpoint, device, data.classes).train()
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
                logits = model(**teacher_inputs(train.batch(chosen, width), data)).logits
            loss = F.cross_entropy(logits.float(), labels[chosen])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            if update + 1 == max(1, round(spec.early * updates)):
                model.save_pretrained(folder / "early")
            progress(f"teacher {spec.name}: fine-tuning", update + 1, updates)
    model.save_pretrained(folder / "final")
    for name in ("early", "final"):
        data.tokenizer.save_pretrained(folder / name)
    seconds = time.perf_counter() - begin
    about = {"spec": asdict(spec), "updates": updates, "bfloat16": mixed, "seconds": round(seconds, 1)}
    write_json(folder / "teacher.json", about)


def fine_tuned(spec: TeacherSpec, checkpoint: Path, data: TaskData, device: torch.device, progress: Progress) -> Path:
    """The folder of a teacher, from the cache or trained now: `final/`, `early/` and `teacher.json`.

    Args:
        spec: the recipe.
        checkpoint: the folder of the pretrained model, under whose tokenizer `data` was prepared.
    """
    weights = file_digest(checkpoint / "model.safetensors")
    key = digest(TEACHER_VERSION, asdict(spec), weights, data.tokenizer_hash, data.fingerprint)
    folder = cache_dir() / "teachers" / f"{data.task.name}-{spec.name}-{key}"
    return build_once(folder, functools.partial(_fine_tune, spec, checkpoint, data, device, progress))


def training_seconds(folder: Path) -> float:
    """How long the fine-tuning of this teacher took."""
    return float(json.loads((folder / "teacher.json").read_text())["seconds"])


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
