"""One id, one exact recipe: what an environment id means on every machine."""

import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from kd_gym.backend.encoder import Architecture, Precision
from kd_gym.backend.knowledge import KNOWLEDGE
from kd_gym.backend.sampling import MEASURES
from kd_gym.backend.teacher import MINILM, TeacherSpec
from kd_gym.backend.terms import Recipe
from kd_gym.errors import KDGymError
from kd_gym.files import digest
from kd_gym.plugins import nearest

Backend = Literal["full", "tiny"]
LABELS_AND_TEACHERS = ("hard", "response")  # half the labels, half the teachers, as in RL-KD
BERT_BASE = "google-bert/bert-base-uncased"


@dataclass(frozen=True)
class Origin:
    """What a recipe is made from, whatever the family.

    Attributes:
        task: a task's name, or None for own data.
        base: of the `-Base` id.
        backend: under `tiny` all recipes are the same few short updates.
        teachers: a JSON file of teachers to take in place of the id's own (see `read_teachers`).
        knowledge: the knowledge types to use in place of the id's own, by name, with commas between them.
        tau: the temperature of soft targets in place of the id's own.
        student: layers and width of the student in place of the id's own, such as `3x384`.
        learning_rate: the student's, in place of the id's own.
        horizon: updates of an episode in place of the id's own, in as many decisions.
        scales: whether losses are measured at the start and scaled to an equal pull; without, weights are as given.
        precision: what students' layers compute in while they learn, `float32` or `bfloat16`.
    """

    task: str | None = None
    base: bool = False
    backend: Backend = "full"
    teachers: str | None = None
    knowledge: str | None = None
    tau: float | None = None
    scales: bool = True
    student: str | None = None
    learning_rate: float | None = None
    horizon: int | None = None
    precision: Precision = "float32"

    def applied(self, recipe: "EnvRecipe") -> "EnvRecipe":
        """The recipe with what this says otherwise.

        Raises:
            KDGymError: a student that has no such shape, or something that no process can have.
        """
        if self.student is not None:
            found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", self.student)
            width = recipe.hidden // recipe.heads
            if not found or int(found[2]) % width:
                raise KDGymError(
                    f"student {self.student!r} is no LAYERSxWIDTH with a width that {width} divides, such as 3x384"
                )
            layers, hidden = int(found[1]), int(found[2])
            recipe = replace(recipe, layers=layers, hidden=hidden, heads=hidden // width)
        process = self._process(recipe.process)
        if self.horizon is None:
            return replace(recipe, process=process)
        decisions = recipe.process.horizon // recipe.updates
        if self.horizon < decisions:
            raise KDGymError(f"a horizon of {self.horizon} updates is shorter than an episode's {decisions} decisions")
        updates = self.horizon // decisions
        return replace(recipe, updates=updates, process=replace(process, horizon=updates * decisions))

    def _process(self, recipe: Recipe) -> Recipe:
        if self.knowledge is not None:
            names = tuple(name.strip() for name in self.knowledge.split(","))
            for name in names:
                KNOWLEDGE.get(name)
            if len(set(names)) < len(names):
                raise KDGymError(f"knowledge {self.knowledge!r} names a type twice")
            recipe = replace(recipe, knowledge=names)
        if self.tau is not None:
            if not 0 < self.tau < math.inf:
                raise KDGymError(f"tau must be positive, not {self.tau}")
            recipe = replace(recipe, tau=float(self.tau))
        if self.learning_rate is not None:
            if not 0 < self.learning_rate < math.inf:
                raise KDGymError(f"learning_rate must be positive, not {self.learning_rate}")
            recipe = replace(recipe, learning_rate=float(self.learning_rate))
        if self.precision not in get_args(Precision):
            raise KDGymError(f"unknown precision {self.precision!r}: {' or '.join(get_args(Precision))}")
        recipe = replace(recipe, precision=self.precision)
        return recipe if self.scales else replace(recipe, scale_batches=0)


@dataclass(frozen=True)
class TeacherSet:
    """The M teachers that answer in an episode; contexts choose a set by its name."""

    name: str
    members: tuple[TeacherSpec, ...]


def _sets(default: TeacherSpec, *others: TeacherSpec) -> tuple[TeacherSet, ...]:
    """Three sets that differ in their first teacher: the default one, its early checkpoint, one of wrong labels.

    A teacher that came tuned has no early checkpoint; on wrong labels it is tuned further.
    """
    early = replace(default, name="early", stage="early")
    epochs = default.epochs or TeacherSpec.epochs
    flipped = replace(default, name="flipped", updates=300, label_noise=0.6, seed=1, epochs=epochs)
    firsts = {"full": default, "early": early, "flipped": flipped}
    if not default.epochs:
        del firsts["early"]
    return tuple(TeacherSet(name, (first, *others)) for name, first in firsts.items())


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

    def told(self) -> dict[str, Any]:
        """What the arguments `knowledge`, `tau` and `scales` of an env with this recipe are."""
        process = self.process
        return {"knowledge": ",".join(process.knowledge), "tau": process.tau, "scales": process.scale_batches > 0}

    def teacher_set(self, name: str | None = None) -> tuple[TeacherSpec, ...]:
        """The M teachers of a set, the first one by default.

        Raises:
            KDGymError: there is no such set, because the first teacher came tuned.
        """
        for one in self.teachers:
            if name in (None, one.name):
                return one.members
        first = self.teachers[0].members[0].name
        raise KDGymError(f"teacher {first!r} came tuned: it has no {name!r} form; take another context")

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


def read_teachers(file: str, checkpoint: str) -> tuple[TeacherSpec, ...]:
    """Teachers of one's own: a JSON list of objects with the attributes of `TeacherSpec`, of which only `name` must
    stand; `checkpoint` is the id's own unless it is given. Students start from the first one, so it has to have the
    id's tokenizer.

    Raises:
        KDGymError: the file cannot be read, or says something that is no teacher; file, entry and remedy are named.
    """
    try:
        entries = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KDGymError(f"{file}: not a file of teachers ({error}); give a JSON list of objects") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise KDGymError(f'{file}: give a JSON list of objects, such as [{{"name": "mine", "epochs": 2}}]')
    found = []
    for i, entry in enumerate(entries):
        try:
            found.append(_teacher({"checkpoint": checkpoint, **entry}))
        except KDGymError as error:
            raise KDGymError(f"{file}, teacher {i + 1}: {error}") from None
    names, taken = [spec.name for spec in found], ("early", "flipped", *KNOWLEDGE.names())
    for name in names:
        if names.count(name) > 1 or name in taken or name.startswith(MEASURES):
            raise KDGymError(f"{file}: the name {name!r} is taken; every teacher needs one of its own")
    return tuple(found)


def _teacher(entry: dict[str, Any]) -> TeacherSpec:
    for key, value in entry.items():
        if key not in TeacherSpec.__dataclass_fields__:
            raise nearest("attribute", key, TeacherSpec.__dataclass_fields__)
        default: object = {"name": "", "layers": 0}.get(key, getattr(TeacherSpec, key, None))
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise KDGymError(f"{key} cannot be {value!r}")
    if not entry.get("name"):
        raise KDGymError("it has no name")
    spec = TeacherSpec(**entry)
    spec.check()
    return spec


def recipe_of(origin: Origin, knowledge: tuple[str, ...] | None = None, several: bool = False) -> EnvRecipe:
    """The recipe of an id: MiniLM-L6 to a small student, or (`-Base`) BERT-base to 6 of its layers.

    Args:
        origin: what the id and its user name.
        knowledge: the knowledge types in use, if not all.
        several: with four teachers instead of one.
    """
    task, base = origin.task, origin.base
    first, *others = (BASE_FULL, *_base_others()) if base else (FULL, *_others(task))
    if origin.teachers is not None:
        first, *others = read_teachers(origin.teachers, first.checkpoint)
    elif not several:
        others = []
    mini = EnvRecipe(task, teachers=_sets(first, *others))
    if knowledge is not None:
        mini = replace(mini, process=replace(mini.process, knowledge=knowledge))
    if origin.backend == "tiny":
        short = replace(mini.process, horizon=20, batch=8)
        mini = replace(mini, layers=2, hidden=16, heads=2, process=short, updates=4, reward_rows=32)
    elif base:
        mini = replace(
            mini,
            checkpoint=BERT_BASE,
            layers=6,
            hidden=768,
            heads=12,
            process=replace(mini.process, horizon=3000, learning_rate=5e-5),
            updates=100,
            reward_rows=1000,
        )
    return origin.applied(mini)
