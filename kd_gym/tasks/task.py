"""What a task is: the names of its text columns and labels, where it lives, and how it is scored."""

from dataclasses import dataclass

from kd_gym.plugins import Registry


@dataclass(frozen=True)
class Task:
    """A labelled text classification data set.

    `hub` is its path and configuration on the Hugging Face hub; `metrics[0]` is the score that tables lead with.
    `nested` marks data whose rows are parts of other rows (SST-2's phrases): the carve then holds out only rows
    that stand in no other row, and takes what stands in them out of `train`.
    """

    name: str
    text: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    hub: tuple[str, str | None] | None = None
    validation: str = "validation"
    nested: bool = False
    max_length: int = 128

    @property
    def pair(self) -> bool:
        """Whether an input is two texts."""
        return len(self.text) == 2


def _glue(name: str, text: tuple[str, ...], labels: tuple[str, ...], **rest: object) -> Task:
    return Task(name, text, labels, hub=("nyu-mll/glue", name.lower()), **rest)  # type: ignore[arg-type]


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS = Registry(
    "tasks",
    {
        task.name: task
        for task in (
            _glue("SST2", ("sentence",), ("negative", "positive"), nested=True),
            _glue("MRPC", _PAIR, ("not_equivalent", "equivalent"), metrics=("f1", "accuracy")),
            _glue("RTE", _PAIR, _ENTAILMENT),
            _glue("QNLI", ("question", "sentence"), _ENTAILMENT),
            _glue(
                "MNLI",
                ("premise", "hypothesis"),
                ("entailment", "neutral", "contradiction"),
                validation="validation_matched",
            ),
            _glue(
                "QQP",
                ("question1", "question2"),
                ("not_duplicate", "duplicate"),
                metrics=("f1", "accuracy"),
            ),
            _glue("CoLA", ("sentence",), ("unacceptable", "acceptable"), metrics=("mcc", "accuracy")),
            Task(
                "RottenTomatoes",
                ("text",),
                ("negative", "positive"),
                hub=("cornell-movie-review-data/rotten_tomatoes", None),
            ),
        )
    },
)
