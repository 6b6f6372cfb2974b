"""One full-length distillation under a frozen controller, and the student to take home."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import kd_gym
from kd_gym.agents.protocol import Controller
from kd_gym.backend.state import State
from kd_gym.envs.faces import DistillationEnv
from kd_gym.errors import KDGymError
from kd_gym.experiments.card import model_card
from kd_gym.experiments.evaluate import load_controller, overrides_of
from kd_gym.experiments.export import ONNX_FILE, Sizes, check_export, check_onnx, export_onnx, sizes
from kd_gym.experiments.prepare import prepare
from kd_gym.experiments.score import Episode, measure, play, teacher_scores
from kd_gym.experiments.setup import EVALUATION_SEEDS, SELECTION_SEEDS, EnvSpec
from kd_gym.files import write_json, write_text


@dataclass(frozen=True)
class Distilled:
    """A student in its folder, what it scored, and how it stands against its teacher.

    `chosen` is the update whose student was kept, and its score on `select`; None where the last one was.
    """

    folder: Path
    episode: Episode
    teacher: dict[str, float]
    sizes: list[Sizes]
    chosen: tuple[int, float] | None


class BestOnSelect:
    """Keeps the student that did best on `select`, and puts it back at the end of the episode."""

    def __init__(self) -> None:
        self.update, self.score = 0, -1.0
        self._state: State | None = None

    def __call__(self, env: DistillationEnv) -> None:
        """After a decision."""
        process = env.episodes.process
        metric = env.lab.data.task.metrics[0]
        score = measure(env.lab, process, "select")[0][metric]
        if score > self.score and not bool(process.failed[0]):
            self.update, self.score, self._state = int(process.update[0]), score, process.snapshot()
        if bool(env.episodes.terminated[0]) and self._state is not None:
            process.restore(self._state)


def distill(
    controller: str,
    spec: EnvSpec,
    out: Path,
    budget: int | None = None,
    seed: int = 0,
    select: bool = False,
    onnx: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Distilled:
    """Distil one student and write it as a Hugging Face checkpoint.

    Args:
        controller: a name, or a run directory whose policy is frozen.
        spec: the env; its arguments say which student, context, data and teacher.
        out: a folder that does not exist or is empty.
        budget: updates; the env's `horizon` where one is given, three epochs of `train` otherwise. The controller makes
            as many decisions as in the env's own episodes, each for a longer stretch.
        seed: of the student and its data order.
        select: keep the student of the decision after which `select` was best, not the last one.
        onnx: write `model.onnx` too, checked against the PyTorch logits.
        command: the command line, for the card.

    Raises:
        KDGymError: the folder is not empty or cannot be written to, which is found out first; the student diverged, or
            the disk is full: nothing is left then that looks like a checkpoint. If ONNX fails, the checkpoint is there.
    """
    if not 0 <= seed < SELECTION_SEEDS - EVALUATION_SEEDS:
        raise KDGymError(f"the seed must lie between 0 and {SELECTION_SEEDS - EVALUATION_SEEDS - 1}, not {seed}")
    if budget is not None and spec.config.get("horizon") is not None:
        raise KDGymError("the budget is the horizon: give one of them")
    if onnx:
        check_onnx()
    with _place(out) as partial:
        if budget is None and spec.config.get("horizon") is None:
            lab = spec.lab()
            budget = 3 * len(lab.data.split("train")) // lab.recipe.process.batch
        longer = spec if budget is None else spec.with_config(horizon=budget)
        prepare(longer, progress)
        loaded, fitted = load_controller(controller, longer)
        env = fitted.make()
        best = BestOnSelect() if select else None
        bar = progress.add_task("distilling", total=env.family.decisions) if progress else None

        def after(env: DistillationEnv) -> None:
            if best is not None:
                best(env)
            if progress and bar is not None:
                progress.update(bar, advance=1)

        episode = play(env, loaded, EVALUATION_SEEDS + seed, after=after)
        if episode.failure:
            raise KDGymError(f"no student came out of this: {episode.failure}")
        try:
            found = _write(env, loaded, fitted, episode, best, partial, controller, command)
        except KDGymError:
            raise
        except Exception as error:  # of a full disk, each library tells in its own way
            why = getattr(error, "strerror", None) or error
            raise KDGymError(f"the student could not be written to {out}: {why}") from error
    if onnx:
        try:
            export_onnx(out, env.lab)
        except Exception as error:
            (out / ONNX_FILE).unlink(missing_ok=True)
            raise KDGymError(f"the checkpoint is in {out}, but {ONNX_FILE} could not be made: {error}") from error
    return Distilled(out, episode, *found)


@contextmanager
def _place(out: Path) -> Iterator[Path]:
    """A folder to fill, whose files are in `out` at the end, all or none; it is tried before the work begins."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise KDGymError(f"{out} is not empty; give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".partial-", dir=out))
    except OSError as error:
        raise KDGymError(f"nothing can be written to {out}: {error.strerror}") from error
    try:
        yield made
        for file in sorted(made.iterdir(), key=lambda file: file.name == "config.json"):  # without it nothing loads
            file.rename(out / file.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        with suppress(OSError):  # it is not empty if all went well
            out.rmdir()


def _write(
    env: DistillationEnv,
    controller: Controller,
    spec: EnvSpec,
    episode: Episode,
    best: BestOnSelect | None,
    folder: Path,
    name: str,
    command: str,
) -> tuple[dict[str, float], list[Sizes], tuple[int, float] | None]:
    """Everything into a folder, checked as it will be read."""
    process, lab = env.episodes.process, env.lab
    process.init.export(process.params, 0, folder, lab.data.tokenizer, lab.data.task.labels)
    check_export(folder, env, episode)
    teacher = teacher_scores(lab.teacher, "report", lab.device)
    found = sizes({"teacher": lab.teacher.folder, "student": folder}, lab)
    chosen = (best.update, best.score) if best else None
    about: dict[str, Any] = {
        "env": spec.id,
        "env_config": {k: v for k, v in spec.config.items() if v is not None},
        "controller": name,
        "overrides": overrides_of(controller, spec),
        "command": command,
        "scores": episode.scores,
        "teacher": {"hash": lab.teacher.hash, "scores": teacher},
        "data": {"source": lab.data.source, "fingerprint": lab.data.fingerprint},
        "seed": episode.seed - EVALUATION_SEEDS,
        "updates": int(spec.family.recipe.process.horizon),
        "chosen": chosen,
        "flops": {"episode": episode.flops, "controller": episode.controller_flops},
        "seconds": round(episode.seconds, 1),
        "versions": {"kd_gym": kd_gym.__version__, "torch": torch.__version__},
    }
    write_json(folder / "distillation.json", about)
    write_text(folder / "README.md", model_card(about, lab, found))
    return teacher, found, chosen
