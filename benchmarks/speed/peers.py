"""The same work for others: what they are given, and the libraries that a user would reach for.

TextBrewer and torchdistill come with the optional extra `peers`, and so does accelerate, without which there is no
`transformers.Trainer`. Each is set up as its own documentation does it, with the same loss; where the documentation
pads to a fixed length (TextBrewer's SST-2 notebook pads to 128), it is given dynamic padding all the same.

- TextBrewer: `GeneralDistiller` with num_steps, plain dicts as batches, torch's default AdamW, no clipping. Its
  cross-entropy with the soft targets has no tau^2, so that is the weight. With logits looked up ahead, batches hold
  `teacher_cache`, the way of its release 0.2.1; `is_caching_logits` is older, freezes the batches of the first epoch,
  and is overwritten by `GeneralDistiller`. Bucketed, which is nowhere in its documentation, is the best it can do.
- torchdistill: the configuration of its own sample for SST-2 (`KDLoss` behind forward hooks, AdamW, clipping, a linear
  schedule) and the loop of its own example, without an accelerator. It has no cache of logits.
- Trainer: a subclass with `compute_loss`; its defaults (fused AdamW, clipping). What it does before the first update
  of a training takes longer than an update, so the clock starts at the end of the first one and one more is made.
"""

import contextlib
import importlib.util
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from bench import TAU, Contender, Run, soft, synchronise
from kd_gym.backend.encoder import Architecture
from kd_gym.tasks import embedded
from kd_gym.tasks.batches import RowStream
from kd_gym.tasks.data import TaskData

RATE = 1e-4
REMEDY = "not installed: pip install -c constraints.txt -e '.[peers]'"
Collate = Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]


@dataclass
class Work:
    """What everybody is given: sentences in the tokenizer's own numbers, batches of them, and both models.

    Attributes:
        data: the task.
        arch: of the student.
        dropout: of the student.
        device: where it is trained.
        stream: the rows of kd-gym's first student, which are everybody's where batches hold one length.
        logits: what the teacher said of each row, ahead.
    """

    data: TaskData
    arch: Architecture
    dropout: float
    device: torch.device
    stream: RowStream
    logits: Tensor

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """All rows as a tokenizer gives them."""
        train = self.data.split("train")
        rows = self.data.vocabulary[train.flat].split(train.length.tolist())
        return [
            {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": label}
            for ids, label in zip(rows, train.labels.tolist(), strict=True)
        ]

    @cached_property
    def looked_up(self) -> list[dict[str, Any]]:
        """The same with what the teacher said of them."""
        return [example | {"said": said} for example, said in zip(self.examples, self.logits.tolist(), strict=True)]

    @cached_property
    def _order(self) -> np.ndarray:
        return np.random.default_rng(0).permutation(len(self.logits))

    def bucketed(self, first: int, count: int) -> list[list[int]]:
        """The rows of these updates as kd-gym draws them: each batch of about one length."""
        return [self.stream.rows(u)[0].tolist() for u in range(first, first + count)]

    def shuffled(self, first: int, count: int) -> list[list[int]]:
        """As many rows in random order."""
        size = self.stream.buckets.batch
        places = np.arange(first * size, (first + count) * size) % len(self._order)
        return self._order[places].reshape(count, size).tolist()

    def student(self, vocabulary: int | None = None) -> BertForSequenceClassification:
        """The student as a `transformers` module, with all word pieces or so many."""
        config = BertConfig(
            vocab_size=vocabulary or len(self.data.tokenizer),
            num_hidden_layers=self.arch.layers,
            hidden_size=self.arch.hidden,
            num_attention_heads=self.arch.heads,
            intermediate_size=self.arch.intermediate,
            num_labels=self.arch.classes,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )
        return BertForSequenceClassification(config).to(self.device).train()

    def teacher(self) -> PreTrainedModel:
        """MiniLM-L6 with any head."""
        found = AutoModelForSequenceClassification.from_pretrained(embedded.minilm(), num_labels=self.arch.classes)
        return found.to(self.device).eval()

    def loader(self, batches: Sequence[list[int]], looked_up: bool = False, **padding: Any) -> DataLoader:
        """These batches, padded dynamically unless it is said otherwise; `said` are the teacher's logits."""
        collate = DataCollatorWithPadding(self.data.tokenizer, **padding)
        return DataLoader(self.looked_up if looked_up else self.examples, batch_sampler=batches, collate_fn=collate)


Batches = Callable[[int, int], list[list[int]]]  # those of so many (second) updates from this one (first) on


def kd_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """tau^2 KL + cross-entropy, as everybody writes it."""
    return soft(teacher, student, TAU) + F.cross_entropy(student, labels)


# ---------------------------------------------------------------------- TextBrewer


def textbrewer(work: Work, batches: Batches, looked_up: bool = False) -> Run:
    """Its distiller over a loader of so many batches; a checkpoint is no part of an update and is left out."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    def adaptor(batch: dict[str, Tensor], said: Any) -> dict[str, Any]:
        return {"logits": said.logits, "losses": said.loss}

    def cached(batch: dict[str, Tensor], said: Tensor) -> dict[str, Any]:
        return {"logits": said}

    def plain(batch: Mapping[str, Tensor]) -> dict[str, Any]:
        inputs = dict(batch)
        if not looked_up:
            return inputs
        said = inputs.pop("said")
        return {"student": inputs, "teacher": inputs, "teacher_cache": said}

    student = work.student()
    distiller = GeneralDistiller(
        TrainingConfig(ckpt_steps=1_000_000, output_dir=tempfile.gettempdir(), device=work.device),
        DistillationConfig(temperature=TAU, kd_loss_weight=TAU**2, hard_label_weight=1),
        work.teacher(),
        student,
        cached if looked_up else adaptor,
        adaptor,
    )
    distiller.save_and_callback = lambda *_: None
    optimiser = torch.optim.AdamW(student.parameters(), lr=RATE)

    def run(first: int, count: int) -> None:
        loader = work.loader(batches(first, count), looked_up)
        with distiller, contextlib.redirect_stderr(io.StringIO()):  # where tqdm draws no bar
            distiller.train(optimiser, loader, num_steps=count, batch_postprocessor=plain)

    return run


# ---------------------------------------------------------------------- torchdistill


@contextlib.contextmanager
def some_torchvision() -> Iterator[None]:
    """torchdistill takes names from torchvision for its image models; where it is missing, empty ones do for text."""
    names = ("", ".datasets", ".models", ".models.densenet", ".models.resnet")
    made = {f"torchvision{name}": ModuleType(f"torchvision{name}") for name in names}
    if importlib.util.find_spec("torchvision"):
        made = {}
    for name, module in made.items():
        module.__getattr__ = lambda wanted: type(wanted, (torch.nn.Module,), {})
        if "." in name:
            above, own = name.rsplit(".", 1)
            setattr(made[above], own, module)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def torchdistill_config() -> dict[str, Any]:
    """After configs/sample/glue/sst2/kd, with tau, weights and rate of this benchmark."""
    model = {"forward_proc": "forward_batch_only_as_kwargs", "forward_hook": {"input": [], "output": ["classifier"]}}
    where = {f"{who}_module_{what}": value for who in ("student", "teacher")
             for what, value in (("path", "classifier"), ("io", "output"))}  # fmt: skip
    loss = {"key": "KDLoss", "kwargs": {**where, "temperature": TAU, "alpha": 1.0, "beta": 1.0}}
    schedule = {"num_warmup_steps": 0, "num_training_steps": 1_000_000}
    return {
        "num_epochs": 1,
        "teacher": {**model, "requires_grad": False},
        "student": {**model, "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": RATE, "weight_decay": 0.0}, "max_grad_norm": 1.0},
        "scheduler": {"key": "get_linear_schedule_with_warmup", "kwargs": schedule, "scheduling_step": 1},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
        },
    }


def torchdistill(work: Work, batches: Batches) -> Run:
    """Its distillation box in the loop of its own example."""
    with some_torchvision():
        from torchdistill.core.distillation import get_distillation_box
        from torchdistill.misc.log import MetricLogger, SmoothedValue
        from torchdistill.optim.registry import register_scheduler

    register_scheduler(get_linear_schedule_with_warmup)
    teacher, student = work.teacher(), work.student()
    box = get_distillation_box(teacher, student, {}, torchdistill_config(), work.device, None, False, 1)

    def run(first: int, count: int) -> None:
        box.pre_epoch_process(epoch=0)
        told = MetricLogger(delimiter="  ")
        told.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        told.add_meter("sample/s", SmoothedValue(window_size=10, fmt="{value}"))
        for batch in told.log_every(work.loader(batches(first, count)), 500, "Epoch: [0]"):
            begin = time.time()
            batch = batch.to(work.device)
            loss = box.forward_process(batch, targets=batch["labels"], supp_dict=None)
            box.post_forward_process(loss=loss)
            told.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            told.meters["sample/s"].update(len(batch["labels"]) / (time.time() - begin))

    return run


# ---------------------------------------------------------------------- transformers.Trainer


class DistillationTrainer(Trainer):
    """The usual subclass: a teacher in `compute_loss`. The loader is set before each training."""

    teacher: PreTrainedModel
    loader: DataLoader

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this training."""
        return self.loader

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """tau^2 KL + cross-entropy."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        with torch.no_grad():
            said = self.teacher(**inputs).logits
        loss = kd_loss(outputs.logits, said, labels)
        return (loss, outputs) if return_outputs else loss


class Clock(TrainerCallback):
    """When the first update of a training ended, and the last."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first = self.last = 0.0

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Look at the clock after these two."""
        if state.global_step in (1, state.max_steps):
            synchronise(self.device)
            self.first, self.last = self.last, time.perf_counter()


def trainer(work: Work, batches: Batches) -> Run:
    """The subclass over a loader of so many batches and one more."""
    args = TrainingArguments(
        tempfile.gettempdir(), learning_rate=RATE, use_cpu=work.device.type == "cpu", disable_tqdm=True,
        save_strategy="no", logging_strategy="no", report_to="none",
    )  # fmt: skip
    clock = Clock(work.device)
    made = DistillationTrainer(work.student(), args, callbacks=[clock])
    made.remove_callback(PrinterCallback)
    made.teacher = work.teacher()

    def run(first: int, count: int) -> float:
        drawn = batches(first, count)
        made.loader = work.loader([drawn[0], *drawn])
        made.args.max_steps = count + 1
        made.train()
        return clock.last - clock.first

    return run


# ---------------------------------------------------------------------- all of them


def libraries(work: Work) -> dict[str, tuple[str, Callable[[], Contender]]]:
    """What each contender needs, and how it is made.

    Random batches cost the same on average whichever they are, so that half as many will do where the teacher is asked.
    """
    few = 0.5
    return {
        "TextBrewer": ("textbrewer", lambda: Contender(textbrewer(work, work.shuffled), share=few)),
        "TextBrewer, cached logits": ("textbrewer", lambda: Contender(textbrewer(work, work.shuffled, True))),
        "TextBrewer, cached and bucketed": ("textbrewer", lambda: Contender(textbrewer(work, work.bucketed, True))),
        "torchdistill": ("torchdistill", lambda: Contender(torchdistill(work, work.shuffled), share=few)),
        "Trainer": ("accelerate", lambda: Contender(trainer(work, work.shuffled), share=few)),
        "Trainer, bucketed": ("accelerate", lambda: Contender(trainer(work, work.bucketed))),
    }


def peers(work: Work) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that are installed, and a word on each that is not."""
    found, missing = {}, {}
    for name, (package, make) in libraries(work).items():
        if importlib.util.find_spec(package):
            found[name] = make()
        else:
            missing[name] = REMEDY
    return found, missing
