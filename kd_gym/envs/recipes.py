"""One id, one exact recipe: what an environment id means on every machine."""

from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from kd_gym.backend.encoder import Architecture
from kd_gym.backend.teacher import MINILM, TeacherSpec
from kd_gym.backend.terms import Recipe
from kd_gym.files import digest

Backend = Literal["full", "tiny"]
BERT_BASE = "google-bert/bert-base-uncased"


@dataclass(frozen=True)
class TeacherSet:
    """The M teachers that answer in an episode; contexts choose a set by its name."""

    name: str
    members: tuple[TeacherSpec, ...]


def _sets(default: TeacherSpec, *others: TeacherSpec) -> tuple[TeacherSet, ...]:
    """Three sets that differ in their first teacher: the default one, its early checkpoint, one of wrong labels."""
    early = replace(default, name="early", stage="early")
    flipped = replace(default, name="flipped", updates=300, label_noise=0.6, seed=1)
    return tuple(TeacherSet(first.name, (first, *others)) for first in (default, early, flipped))


FULL = TeacherSpec("full")
BASE_FULL = TeacherSpec("full", checkpoint=BERT_BASE, updates=100_000, learning_rate=3e-5)


@dataclass(frozen=True)
class EnvRecipe:
    """All that fixes the numbers of an id, besides the data and the teacher's bits.

    Attributes:
        checkpoint: the pretrained model (a hub name) whose tokenizer and shape students have.
        student: layers, hidden size and heads of the student.
        updates: updates of one decision.
        reward_rows: how many rows of the reward split are read at an evaluation.
        teachers: sets of M teachers; the first member of the first set is the default teacher, from which students
            start.
    """

    task: str | None
    checkpoint: str = MINILM
    layers: int = 2
    hidden: int = 128
    heads: int = 4
    process: Recipe = field(default_factory=Recipe)
    updates: int = 10
    reward_rows: int = 256
    teachers: tuple[TeacherSet, ...] = field(default_factory=lambda: _sets(FULL))

    def __post_init__(self) -> None:
        if self.process.horizon % self.updates:
            raise ValueError("the horizon must be a whole number of decisions")

    @property
    def hash(self) -> str:
        """A hash over the recipe."""
        return digest(asdict(self))

    def teacher_set(self, name: str | None = None) -> tuple[TeacherSpec, ...]:
        """The M teachers of a set, the first one by default."""
        return next(s.members for s in self.teachers if name in (None, s.name))

    def teacher_names(self, name: str | None = None) -> tuple[str, ...]:
        """The names of the teachers of a set, the first one by default."""
        return tuple(spec.name for spec in self.teacher_set(name))

    def architecture(self, classes: int) -> Architecture:
        """The student's shape; vocabulary and positions come from the checkpoint."""
        return Architecture(self.layers, self.hidden, self.heads, 4 * self.hidden, 0, classes)


def _others(task: str | None) -> tuple[TeacherSpec, ...]:
    """Three more teachers beside the default one: smaller, less taught, and wrong on some inputs."""
    shallow = TeacherSpec("shallow", layers=4, updates=1500, seed=2)
    tenth = TeacherSpec("tenth", share=0.1, seed=3)
    if task in ("SST2", "RottenTomatoes"):
        return shallow, tenth, TeacherSpec("imdb", domain="imdb", updates=400, seed=4)
    return shallow, tenth, TeacherSpec("partial", updates=600, label_noise=0.8, noise_on="long", seed=4)


def _base_others() -> tuple[TeacherSpec, ...]:
    """The teachers beside BERT in the paper on multi-teacher selection (Yuan et al., 2021)."""
    names = {"roberta": "FacebookAI/roberta-base", "xlnet": "xlnet/xlnet-base-cased", "albert": "albert/albert-base-v2"}
    return tuple(replace(BASE_FULL, name=name, checkpoint=path) for name, path in names.items())


def recipe_of(
    task: str | None,
    base: bool = False,
    backend: Backend = "full",
    knowledge: tuple[str, ...] | None = None,
    several: bool = False,
) -> EnvRecipe:
    """The recipe of a task's ids: MiniLM-L6 to a small student, or (`-Base`) BERT-base to 6 of its layers.

    Args:
        task: a task's name, or None for own data.
        base: of the `-Base` id.
        backend: under `tiny` all recipes are the same few short updates.
        knowledge: the knowledge types in use, if not all.
        several: with four teachers instead of one.
    """
    mini = EnvRecipe(task, teachers=_sets(FULL, *_others(task)) if several else _sets(FULL))
    if knowledge is not None:
        mini = replace(mini, process=replace(mini.process, knowledge=knowledge))
    if backend == "tiny":
        return replace(mini, process=replace(mini.process, horizon=20, batch=8), updates=4, reward_rows=32)
    if not base:
        return mini
    return replace(
        mini,
        checkpoint=BERT_BASE,
        layers=6,
        hidden=768,
        heads=12,
        process=replace(mini.process, horizon=3000, learning_rate=5e-5),
        updates=100,
        reward_rows=1000,
        teachers=_sets(BASE_FULL, *_base_others()) if several else _sets(BASE_FULL),
    )
