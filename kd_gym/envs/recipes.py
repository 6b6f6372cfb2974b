"""One id, one exact recipe: what an environment id means on every machine."""

from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from kd_gym.backend.encoder import Architecture
from kd_gym.backend.teacher import TeacherSpec
from kd_gym.backend.terms import Recipe
from kd_gym.files import digest

Backend = Literal["full", "tiny"]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
BERT_BASE = "google-bert/bert-base-uncased"


@dataclass(frozen=True)
class EnvRecipe:
    """All that fixes the numbers of an id, besides the data and the teacher's bits.

    Attributes:
        checkpoint: the pretrained model (a hub name) that teachers are tuned from and students start from.
        student: layers, hidden size and heads of the student.
        updates: updates of one decision.
        reward_rows: how many rows of the reward split are read at an evaluation.
        teachers: recipes of the fine-tuned teachers; teacher quality contexts choose among them.
    """

    task: str | None
    checkpoint: str = MINILM
    layers: int = 2
    hidden: int = 128
    heads: int = 4
    process: Recipe = field(default_factory=Recipe)
    updates: int = 10
    reward_rows: int = 256
    full: TeacherSpec = field(default_factory=lambda: TeacherSpec("full"))
    flipped: TeacherSpec = field(default_factory=lambda: TeacherSpec("flipped", updates=300, label_noise=0.6, seed=1))

    def __post_init__(self) -> None:
        if self.process.horizon % self.updates:
            raise ValueError("the horizon must be a whole number of decisions")

    @property
    def decisions(self) -> int:
        """Decisions of one episode."""
        return self.process.horizon // self.updates

    @property
    def hash(self) -> str:
        """A hash over the recipe."""
        return digest(asdict(self))

    def architecture(self, classes: int) -> Architecture:
        """The student's shape; vocabulary and positions come from the checkpoint."""
        return Architecture(self.layers, self.hidden, self.heads, 4 * self.hidden, 0, classes)


def recipe_of(task: str | None, base: bool = False, backend: Backend = "full") -> EnvRecipe:
    """The recipe of a task's ids: MiniLM-L6 to a small student, or (`-Base`) BERT-base to 6 of its layers.

    Under the tiny backend both are the same few short updates.
    """
    mini = EnvRecipe(task)
    if backend == "tiny":
        return replace(mini, process=replace(mini.process, horizon=20, batch=8), updates=4, reward_rows=32)
    if not base:
        return mini
    spec = TeacherSpec("full", epochs=3.0, updates=100_000, learning_rate=3e-5)
    return replace(
        mini,
        checkpoint=BERT_BASE,
        layers=6,
        hidden=768,
        heads=12,
        process=replace(mini.process, horizon=3000, learning_rate=5e-5),
        updates=100,
        reward_rows=1000,
        full=spec,
        flipped=replace(spec, name="flipped", label_noise=0.6, seed=1),
    )
