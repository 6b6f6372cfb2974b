"""Tiny random models and generated text behind the same interfaces: whole environments in milliseconds, for tests."""

import functools

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kd_gym.backend.checkpoint import StudentInit
from kd_gym.backend.encoder import Architecture, Params, parameter_shapes
from kd_gym.backend.live import BertNetwork, Network
from kd_gym.backend.store import TeacherStore
from kd_gym.files import digest
from kd_gym.tasks.data import TaskData, build_data
from kd_gym.tasks.readers import Rows
from kd_gym.tasks.sources import Source
from kd_gym.tasks.task import TASKS, Task

_WORDS = [f"{a}{b}" for a in ("ba", "de", "ki", "lo", "mu", "re", "sa", "to") for b in ("n", "r", "s", "l", "m", "x")]
_LAYERS, _WIDTH = 3, 24  # of the pretended teacher


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-piece tokenizer of BERT's form over the made-up words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate([*special, *_WORDS])}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _generate(task: Task, count: int, seed: int) -> Rows:
    """Texts in which the words of a class are more frequent than those of others."""
    random = np.random.default_rng([seed, int(digest(task.name)[:8], 16)])
    classes = len(task.labels)
    rows = Rows()
    for _ in range(count):
        label = int(random.integers(classes))
        likely = np.where(np.arange(len(_WORDS)) % classes == label, 4.0, 1.0)
        texts = tuple(
            " ".join(random.choice(_WORDS, size=random.integers(3, 12), p=likely / likely.sum())) for _ in task.text
        )
        rows.texts.append(texts)
        rows.labels.append(label)
    return rows


@functools.cache
def tiny_data(name: str | None) -> TaskData:
    """Generated splits of a task's form (None: three classes of single texts)."""
    task: Task = TASKS.get(name) if name else Task("Own", ("text",), ("a", "b", "c"))
    source = Source(task, _generate(task, 700, 0), _generate(task, 60, 1), "tiny:generated")
    return build_data(source, tiny_tokenizer(), None)


def tiny_init(data: TaskData, layers: int = 2, hidden: int = 16) -> StudentInit:
    """Students of 2 layers x 16, all but the embeddings drawn from the seed."""
    arch = Architecture(layers, hidden, hidden // 8, 2 * hidden, len(data.vocabulary), data.classes, positions=64)
    random = torch.Generator().manual_seed(0)
    full = len(tiny_tokenizer())
    shared = {
        name: torch.randn(rows, hidden, generator=random) * 0.1
        for name, rows in (("word", full), ("position", 64), ("segment", 2))
    }
    return StudentInit(arch, shared, data.vocabulary)


@functools.cache
def _tiny_store(task: str, labels: tuple[int, ...], classes: int, name: str) -> TeacherStore:
    right = {"random-1": 0.0, "random-2": 0.0, "full": 0.95, "shallow": 0.9, "tenth": 0.8, "early": 0.7}.get(name, 0.5)
    random = np.random.default_rng([1, int(digest(task, name)[:8], 16)])
    said = np.where(random.random(len(labels)) < right, labels, random.integers(classes, size=len(labels)))
    logits = 3 * np.eye(classes)[said] + random.normal(size=(len(labels), classes)) / 2
    layers = _LAYERS - (name == "shallow")
    mix = random.normal(size=(layers, classes, _WIDTH))
    cls = np.einsum("rc,lcw->rlw", logits, mix) + random.normal(size=(len(labels), layers, _WIDTH))
    return TeacherStore(
        torch.from_numpy(logits).float(),
        torch.from_numpy(cls).half(),
        {"weights": f"tiny-{name}", "split": "train"},
    )


def tiny_store(data: TaskData, name: str, split: str = "train") -> TeacherStore:
    """A pretended teacher over a split: right on 95 % (`early`: 70 %) of the rows, states that follow its logits."""
    labels = tuple(data.split(split).labels.tolist())
    return _tiny_store(data.task.name, labels, data.classes, name)


def tiny_teacher(data: TaskData, name: str, untuned: bool) -> tuple[Network, Params]:
    """A random network as a live teacher; `untuned`, with a classifier of zeros."""
    arch = Architecture(_LAYERS, _WIDTH, 2, 2 * _WIDTH, len(data.vocabulary), data.classes, positions=64)
    random = torch.Generator().manual_seed(int(digest(name)[:8], 16))
    params = {}
    for key, shape in parameter_shapes(arch).items():
        params[key] = torch.randn(shape, generator=random) * (0.3 if len(shape) == 2 else 0.0)
        if "norm" in key and key.endswith("weight"):
            params[key] += 1
        if "classifier" in key and untuned:
            params[key].zero_()
    return BertNetwork(arch), params
