"""Data, teachers and stores, ahead of time."""

from collections.abc import Callable

from rich.progress import Progress, TaskID

from kd_gym.envs.contexts import teacher_sets
from kd_gym.envs.lab import Lab
from kd_gym.experiments.facts import facts_here, note
from kd_gym.experiments.score import Split, teacher_scores
from kd_gym.experiments.setup import EnvSpec

SCORED: tuple[Split, ...] = ("select", "report")
Scores = dict[str, dict[Split, dict[str, float]]]  # by teacher, split and metric


def show_on(progress: Progress | None) -> Callable[[str, int, int], None]:
    """A callback that draws one bar for each thing that is prepared."""
    bars: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if progress is None:
            return
        if what not in bars:
            bars[what] = progress.add_task(what, total=total)
        progress.update(bars[what], completed=done)

    return show


def prepare(spec: EnvSpec, progress: Progress | None = None) -> Lab:
    """Carve and tokenise, then tune and store every teacher that the env's contexts ask for; done once, then kept."""
    lab = spec.lab()
    show = show_on(progress)
    for name in (None, *teacher_sets(spec.config.get("context", "default"))):
        lab.teachers(name, show)
    return lab


def score_teachers(spec: EnvSpec, lab: Lab) -> Scores:
    """The scores of all teachers that were prepared, by name and split; kept for `kd-gym describe`."""
    scores = {
        teacher.spec.name: {split: teacher_scores(teacher, split, lab.device) for split in SCORED}
        for teacher in lab.made
    }
    if lab.teacher.folder is not None:  # the tiny backend leaves no files
        note(facts_here(), spec.id, lab, teachers=scores)
    return scores
