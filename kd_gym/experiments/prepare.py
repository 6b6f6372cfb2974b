"""Data, teachers and stores, ahead of time."""

from collections.abc import Callable

from rich.progress import Progress, TaskID

from kd_gym.envs.contexts import teacher_sets
from kd_gym.envs.lab import Lab
from kd_gym.experiments.setup import EnvSpec


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
