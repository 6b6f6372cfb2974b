"""Everything an env and a scorer share: the data, the teachers and the start of students, opened once."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from kd_gym.backend.checkpoint import StudentInit
from kd_gym.backend.encoder import Params, Precision
from kd_gym.backend.live import LiveTeacher, Network, TeacherKind, open_teacher
from kd_gym.backend.process import PROCESS_VERSION, DistillationProcess
from kd_gym.backend.store import JoinedStore, Store, TeacherStore, teacher_store
from kd_gym.backend.teacher import (
    MINILM,
    Progress,
    TeacherSpec,
    fast_bfloat16,
    fine_tuned,
    training_seconds,
    word_states,
)
from kd_gym.backend.tiny import tiny_data, tiny_init, tiny_store, tiny_teacher
from kd_gym.envs.contexts import context_set, draw_context, teacher_sets
from kd_gym.envs.recipes import Backend, EnvRecipe
from kd_gym.errors import KDGymError
from kd_gym.files import digest
from kd_gym.tasks import embedded
from kd_gym.tasks.data import TaskData, load_data
from kd_gym.tasks.sources import cache_alone_unless_the_hub_answers

Rows = Literal["train", "train+reward"]


def quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def checkpoint_folder(name: str) -> Path:
    """The local folder of a pretrained model: the embedded one for MiniLM, a given folder, or the hub's cache.

    Raises:
        KDGymError: neither the hub nor its cache gives it, or it is not whole.
    """
    remedy = "give the network access to the hub once, or fill its cache"
    if name == MINILM:
        try:
            return embedded.minilm()
        except KDGymError as error:
            remedy = str(error)
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        patterns = ["config.json", "model.safetensors", "tokenizer*", "vocab.txt", "special_tokens_map.json"]
        try:
            with cache_alone_unless_the_hub_answers():
                folder = Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=5))
        except Exception as error:  # the hub's client raises many kinds, all of which mean the same here
            raise KDGymError(f"the hub did not give the model {name} ({type(error).__name__}); {remedy}") from None
    # Other programs leave parts of models in the cache, and without its files a tokenizer knows no word, silently.
    for files in (("config.json",), ("model.safetensors",), ("tokenizer.json", "vocab.txt")):
        if not any((folder / file).is_file() for file in files):
            raise KDGymError(f"{folder}: no {' or '.join(files)} here; save or fetch model and tokenizer again")
    return folder


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; `KDGymError` where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise KDGymError(f"unknown device {name!r}: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise KDGymError("no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _check_precision(recipe: EnvRecipe, device: torch.device) -> None:
    if recipe.process.precision == "bfloat16" and not fast_bfloat16(device):
        what = "this CPU has no AVX512-BF16 or AMX" if device.type == "cpu" else "this CUDA device lacks it"
        raise KDGymError(f"bfloat16 would be no faster than float32 here: {what}; leave precision at float32")


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher made real.

    Attributes:
        spec: its recipe.
        store: its outputs on `train`.
        hash: of its weights.
        data: the task under its own tokenizer.
        folder: where its checkpoint is; None: it has none.
        over: gives its outputs on another split.
        live: gives its network and parameters, tuned or not.
        seconds: what tuning and storing it took, once.
    """

    spec: TeacherSpec
    store: TeacherStore
    hash: str
    data: TaskData
    folder: Path | None
    over: Callable[[str], TeacherStore]
    live: Callable[[bool], tuple[Network, Params]]
    seconds: float = 0.0

    def store_of(self, both: bool) -> Store:
        """Its outputs on `train`, or on `train` and after it `reward`."""
        return JoinedStore(self.store, self.over("reward")) if both else self.store


class Lab:
    """A recipe made real on one device: data, starts of students, and teachers as contexts ask for them.

    `make_teacher` is called once for each teacher, at its first use; `start` makes the start of students from the
    default teacher.
    """

    def __init__(
        self,
        recipe: EnvRecipe,
        data: TaskData,
        device: torch.device,
        make_teacher: Callable[[TeacherSpec, Progress], Teacher],
        start: Callable[[Teacher], StudentInit],
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.device = device
        self._make_teacher = make_teacher
        self._start = start
        self._made: dict[TeacherSpec, Teacher] = {}

    def teachers(self, name: str | None = None, progress: Progress = quiet) -> tuple[Teacher, ...]:
        """The M teachers of a set, the first one by default; each is tuned and stored at its first use."""
        members = self.recipe.teacher_set(name)
        for spec in members:
            if spec not in self._made:
                self._made[spec] = self._make_teacher(spec, progress)
        return tuple(self._made[spec] for spec in members)

    @property
    def teacher(self) -> Teacher:
        """The default teacher."""
        return self.teachers()[0]

    @property
    def made(self) -> tuple[Teacher, ...]:
        """All teachers that were asked for so far."""
        return tuple(self._made.values())

    @functools.cached_property
    def init(self) -> StudentInit:
        """Where students start, whatever the context: from the default teacher."""
        return self._start(self.teacher)

    def fingerprint(self, context: str = "default") -> str:
        """A hash over all that fixes an episode's numbers, given its kwargs, seed and actions."""
        hashes = [[t.hash for t in self.teachers(name)] for name in teacher_sets(context)]
        drawn = [asdict(draw_context(context, seed)) for seed in range(len(context_set(context)))]  # each of them once
        return digest(PROCESS_VERSION, self.recipe.hash, self.data.fingerprint, self.teacher.hash, hashes, drawn)

    def process(
        self, students: int, sets: Iterable[str], kind: TeacherKind = "stored", rows: Rows = "train"
    ) -> DistillationProcess:
        """A process over these rows with these teacher sets. It never sees `select` and `report`."""
        members = {name: self.teachers(name) for name in sorted(set(sets))}
        split, more = self.data.split("train"), self.data.split("reward")
        both = rows == "train+reward"
        return DistillationProcess(
            split + more if both else split,
            {name: tuple(teacher.store_of(both) for teacher in teachers) for name, teachers in members.items()},
            self.init,
            self.recipe.process,
            students,
            self.device,
            live=None if kind == "stored" else self._live(members, students, kind == "untuned"),
            clean=len(more) if both else 0,
        )

    def _live(self, members: Mapping[str, Sequence[Teacher]], students: int, untuned: bool) -> LiveTeacher:
        """The first teacher of each set, running in the loop; `untuned`, as it was before it was tuned."""
        opened = {name: teachers[0].live(untuned) for name, teachers in members.items()}
        network = next(iter(opened.values()))[0]
        starts = {name: start for name, (_, start) in opened.items()}
        fast = self.teacher.folder is not None and fast_bfloat16(self.device)  # about twice as fast
        precision: Precision = "bfloat16" if fast else "float32"
        return LiveTeacher(network, starts, students, untuned, self.device, precision=precision)


def _pretended(spec: TeacherSpec, data: TaskData) -> Teacher:
    """A teacher of the tiny backend."""
    over = functools.partial(tiny_store, data, spec.name)
    live = functools.partial(tiny_teacher, data, spec.name)
    return Teacher(spec, over("train"), f"tiny-{spec.name}", data, None, over, live)


@functools.lru_cache(maxsize=8)
def open_lab(recipe: EnvRecipe, data: str = "auto", device: str = "auto", backend: Backend = "full") -> Lab:
    """The lab of a recipe; opened once in a process.

    Args:
        recipe: what the id means.
        data: `auto`, `hub`, `embedded` or a path (see `load_source`).
        device: `auto`, `cpu` or `cuda`.
        backend: `tiny` has tiny random models and generated text, for tests: no file is read or written.
    """
    target = resolve_device(device)
    _check_precision(recipe, target)
    if backend == "tiny":
        found = tiny_data(recipe.task)
        return Lab(
            recipe,
            found,
            target,
            lambda spec, _: _pretended(spec, found),
            lambda _: tiny_init(found, recipe.layers, recipe.hidden),
        )
    if backend != "full":
        raise KDGymError(f"unknown backend {backend!r}: full or tiny")
    checkpoint = checkpoint_folder(recipe.checkpoint)
    loaded = load_data(recipe.task, data, checkpoint)

    def make(spec: TeacherSpec, progress: Progress) -> Teacher:
        folder = checkpoint_folder(spec.checkpoint)
        own = loaded if spec.checkpoint == recipe.checkpoint else load_data(recipe.task, data, folder)
        chosen = fine_tuned(spec, folder, own, target, progress)

        def over(split: str) -> TeacherStore:
            return teacher_store(chosen, own, split, target, progress)

        def live(untuned: bool) -> tuple[Network, Params]:
            if untuned and not spec.epochs:
                raise KDGymError(f"teacher {spec.name!r} came tuned: it has no untuned form")
            return open_teacher(
                folder if untuned else chosen, own.vocabulary, own.classes, target, untuned, spec.layers
            )

        store = over("train")
        seconds = training_seconds(chosen) + store.seconds
        return Teacher(spec, store, store.key["weights"][:16], own, chosen, over, live, seconds)

    def start(teacher: Teacher) -> StudentInit:
        assert teacher.folder is not None
        folder = teacher.folder
        if teacher.data.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
            raise KDGymError(
                f"students start from the first teacher, and {teacher.spec.name!r} has another tokenizer than "
                f"{recipe.checkpoint}; put one of that family first"
            )
        words = functools.partial(word_states, folder, loaded.tokenizer, target)
        return StudentInit.of(folder, recipe.architecture(loaded.classes), loaded.vocabulary, words)

    return Lab(recipe, loaded, target, make, start)
