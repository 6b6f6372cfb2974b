"""Everything an env and a scorer share: the data, the teachers and the start of students, opened once."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from kd_gym.backend.checkpoint import StudentInit
from kd_gym.backend.process import PROCESS_VERSION, DistillationProcess
from kd_gym.backend.store import TeacherStore, teacher_store
from kd_gym.backend.teacher import Progress, fine_tuned, training_seconds, word_states
from kd_gym.backend.tiny import tiny_data, tiny_init, tiny_store
from kd_gym.envs.contexts import context_set
from kd_gym.envs.recipes import MINILM, Backend, EnvRecipe
from kd_gym.errors import KDGymError
from kd_gym.files import digest
from kd_gym.tasks import embedded
from kd_gym.tasks.data import TaskData, load_data


def quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def checkpoint_folder(name: str) -> Path:
    """The local folder of a pretrained model: the embedded one for MiniLM, a given folder, or the hub's cache.

    Raises:
        KDGymError: neither the hub nor its cache gives it.
    """
    if name == MINILM:
        try:
            return embedded.minilm()
        except KDGymError as error:
            remedy = str(error)
    elif Path(name).is_dir():
        return Path(name)
    else:
        remedy = "give the network access to the hub once, or fill its cache"
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "model.safetensors", "tokenizer*", "vocab.txt", "special_tokens_map.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=5))
    except Exception as error:  # the hub's client raises many kinds, all of which mean the same here
        raise KDGymError(f"the hub did not give the model {name} ({type(error).__name__}); {remedy}") from None


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; `KDGymError` where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise KDGymError(f"unknown device {name!r}: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise KDGymError("no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Teacher(NamedTuple):
    """A teacher made real: its outputs on `train`, a hash of its weights, its folder (None: it has none), and the
    seconds that tuning and storing it took, once.
    """

    store: TeacherStore
    hash: str
    folder: Path | None
    seconds: float = 0.0


class Lab:
    """A recipe made real on one device: data, starts of students, and teachers as contexts ask for them.

    `make_teacher` is called once for each teacher name, at its first use; `start` makes the start of students from
    the default teacher.
    """

    def __init__(
        self,
        recipe: EnvRecipe,
        data: TaskData,
        device: torch.device,
        make_teacher: Callable[[str, Progress], Teacher],
        start: Callable[[Teacher], StudentInit],
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.device = device
        self._make_teacher = make_teacher
        self._start = start
        self._teachers: dict[str, Teacher] = {}

    def teacher(self, name: str = "full", progress: Progress = quiet) -> Teacher:
        """Teacher `full`, `early` or `flipped`; tuned and stored at the first use."""
        if name not in self._teachers:
            self._teachers[name] = self._make_teacher(name, progress)
        return self._teachers[name]

    @functools.cached_property
    def init(self) -> StudentInit:
        """Where students start, whatever the context: from the default teacher."""
        return self._start(self.teacher())

    def fingerprint(self, context: str = "default") -> str:
        """A hash over all that fixes an episode's numbers, given its kwargs, seed and actions."""
        names = sorted({"full", *(c.teachers for c in context_set(context))})
        return digest(PROCESS_VERSION, self.recipe.hash, self.data.fingerprint, [self.teacher(n).hash for n in names])

    def process(self, students: int, teachers: Iterable[str]) -> DistillationProcess:
        """A process over the train split with these teachers loaded. It never sees `select` and `report`."""
        return DistillationProcess(
            self.data.split("train"),
            {name: (self.teacher(name).store,) for name in sorted(set(teachers))},
            self.init,
            self.recipe.process,
            students,
            self.device,
        )


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
    if backend == "tiny":
        found = tiny_data(recipe.task)
        return Lab(
            recipe,
            found,
            target,
            lambda name, _: Teacher(tiny_store(found, name), f"tiny-{name}", None),
            lambda _: tiny_init(found),
        )
    if backend != "full":
        raise KDGymError(f"unknown backend {backend!r}: full or tiny")
    checkpoint = checkpoint_folder(recipe.checkpoint)
    loaded = load_data(recipe.task, data, checkpoint)

    def make(name: str, progress: Progress) -> Teacher:
        spec = recipe.flipped if name == "flipped" else recipe.full
        folder = fine_tuned(spec, checkpoint, loaded, target, progress)
        chosen = folder / ("early" if name == "early" else "final")
        store = teacher_store(chosen, loaded, "train", target, progress)
        return Teacher(store, store.key["weights"][:16], chosen, training_seconds(folder) + store.seconds)

    def start(teacher: Teacher) -> StudentInit:
        assert teacher.folder is not None
        folder = teacher.folder
        words = functools.partial(word_states, folder, loaded.tokenizer, target)
        return StudentInit.of(folder, recipe.architecture(loaded.classes), loaded.vocabulary, words)

    return Lab(recipe, loaded, target, make, start)
