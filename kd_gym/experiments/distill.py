"""One full-length distillation under a frozen controller, and the student to take home."""

import shutil
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
from kd_gym.experiments.export import Sizes, check_export, check_onnx, export_onnx, sizes
from kd_gym.experiments.prepare import prepare
from kd_gym.experiments.score import Episode, measure, play, teacher_scores
from kd_gym.experiments.setup import EVALUATION_SEEDS, EnvSpec
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
        budget: updates; three epochs of what the student is trained on by default. The controller makes as many
            decisions as in the env's own episodes, each for a longer stretch.
        seed: of the student and its data order.
        select: keep the student of the decision after which `select` was best, not the last one.
        onnx: write `model.onnx` too, checked against the PyTorch logits.
        command: the command line, for the card.

    Raises:
        KDGymError: the folder is not empty, the student diverged, or the disk is full; nothing is left then that looks
            like a checkpoint.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise KDGymError(f"{out} is not empty; give another --out")
    if onnx:
        check_onnx()
    if budget is None:
        lab = spec.lab()
        budget = 3 * len(lab.data.split("train")) // lab.recipe.process.batch
    longer = spec.with_config(horizon=budget)
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
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        found = _write(env, loaded, fitted, episode, best, partial, onnx, controller, command)
        shutil.rmtree(out, ignore_errors=True)  # empty, or not there
        partial.rename(out)
    except OSError as error:
        raise KDGymError(f"the student could not be written to {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Distilled(out, episode, *found)


def _write(
    env: DistillationEnv,
    controller: Controller,
    spec: EnvSpec,
    episode: Episode,
    best: BestOnSelect | None,
    folder: Path,
    onnx: bool,
    name: str,
    command: str,
) -> tuple[dict[str, float], list[Sizes], tuple[int, float] | None]:
    """Everything into a folder, checked as it will be read."""
    process, lab = env.episodes.process, env.lab
    process.init.export(process.params, 0, folder, lab.data.tokenizer, lab.data.task.labels)
    check_export(folder, env, episode)
    if onnx:
        export_onnx(folder, lab)
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
