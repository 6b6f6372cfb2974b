"""The scorer: the one place that opens `report` (and, for choices, `select`)."""

import functools
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kd_gym.agents.protocol import Controller
from kd_gym.backend.metrics import METRICS
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.teacher import load_teacher, teacher_inputs
from kd_gym.backend.terms import Evaluation
from kd_gym.envs.faces import DistillationEnv
from kd_gym.envs.lab import Lab, Teacher
from kd_gym.experiments.machine import this_machine
from kd_gym.files import cache_dir, digest, file_digest, write_json
from kd_gym.tasks.data import TaskData

Split = Literal["select", "report"]


@dataclass(frozen=True)
class Episode:
    """One evaluated episode: its scores by metric, what the agent got, and what it cost.

    Attributes:
        actions: one for each decision, as JSON can hold them.
        trace: what each decision brought, by name: `reward`, `cross_entropy` (of the reward split), `weight/NAME` of
            the control that was applied, `term/NAME` of the reward.
        flops: of student, teachers in the loop and evaluations; the last ones also by themselves.
        parameters: a hash of the student's final parameters.
        notes: what the controller has to tell.
    """

    seed: int
    context: str
    scores: dict[str, float]
    cross_entropy: float
    reward: float
    reward_cross_entropy: float
    flops: int
    evaluation_flops: int
    controller_flops: int
    seconds: float
    controller_seconds: float
    failure: str
    actions: list[Any]
    trace: dict[str, list[float]]
    parameters: str
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def spent(self) -> int:
        """FLOPs of everything together."""
        return self.flops + self.controller_flops


def measure(lab: Lab, process: DistillationProcess, split: Split) -> tuple[dict[str, float], Evaluation]:
    """The scores of a process's first student on a held-out split, by metric name."""
    rows = lab.data.split(split).to(lab.device)
    evaluation = process.evaluate(rows.batches())
    predictions, labels = evaluation.predictions[0].numpy(), rows.labels[rows.by_length()].cpu().numpy()
    return {name: METRICS[name](predictions, labels) for name in lab.data.task.metrics}, evaluation


def parameters_digest(process: DistillationProcess) -> str:
    """A hash of all parameters of a process's first student, heads included."""
    values = {name: value[0].detach().contiguous().cpu().numpy() for name, value in sorted(process.params.items())}
    return digest(*(part for name, value in values.items() for part in (name, value.tobytes())))


def _told(info: dict[str, Any], reward: float) -> dict[str, float]:
    """A decision's part of the trace."""
    return {
        "reward": reward,
        "cross_entropy": info["reward_split"]["cross_entropy"],
        **{f"weight/{name}": value for name, value in info["control"].items()},
        **{f"term/{name}": value for name, value in info["reward_terms"].items()},
    }


def _plain(action: Any) -> Any:
    """An action as JSON can hold it."""
    if isinstance(action, dict):
        return {name: _plain(part) for name, part in action.items()}
    return np.asarray(action).tolist()


def play(
    env: DistillationEnv,
    controller: Controller,
    seed: int,
    split: Split = "report",
    after: Callable[[DistillationEnv], None] | None = None,
) -> Episode:
    """One whole episode under a controller, then its score on a split; `after` is called after each decision."""
    begin = time.perf_counter()
    seen, info = env.reset(seed=seed)
    spent = env.episodes.process.cost.seconds["controller"]
    starting = time.perf_counter()
    if hasattr(controller, "begin"):  # an agent of one's own need not have it
        controller.begin(env)
    state: Any = None
    start = np.ones(1, np.bool_)
    thinking, over = time.perf_counter() - starting, False
    actions, told = [], []
    while not over:
        asked = time.perf_counter()
        action, state = controller.predict(seen, state, start, deterministic=True)
        thinking += time.perf_counter() - asked
        actions.append(_plain(action))
        seen, gained, terminated, truncated, info = env.step(action)
        if after is not None:
            after(env)
        told.append(_told(info, float(gained)))
        over, start = terminated or truncated, np.zeros(1, np.bool_)
    seconds = time.perf_counter() - begin
    scores, evaluation = measure(env.lab, env.episodes.process, split)
    return Episode(
        seed=seed,
        context=info["context"],
        scores=scores,
        cross_entropy=float(evaluation.cross_entropy[0]),
        reward=sum(step["reward"] for step in told),
        reward_cross_entropy=info["reward_split"]["cross_entropy"],
        flops=info["flops"],
        evaluation_flops=int(env.episodes.process.cost.evaluation[0]),
        controller_flops=controller.cost(len(actions)) if hasattr(controller, "cost") else 0,
        seconds=seconds,
        controller_seconds=thinking + env.episodes.process.cost.seconds["controller"] - spent,
        failure=info["failure"],
        actions=actions,
        trace={name: [step[name] for step in told] for name in told[0]},
        parameters=parameters_digest(env.episodes.process),
        notes=controller.notes() if hasattr(controller, "notes") else {},
    )


def play_fixed(env: DistillationEnv, controller: Controller, name: str, kwargs: dict[str, Any], seed: int) -> Episode:
    """`play` for a control that does not learn, scored once for each (id, data, teacher, seed, code) and kept."""
    lab = env.lab
    config = {k: v for k, v in kwargs.items() if k not in ("data", "device")}
    kinds = {kind for thing in (controller, env.family, env.episodes) for kind in type(thing).__mro__}
    own = sorted({inspect.getfile(kind) for kind in kinds if kind.__module__.startswith("kd_gym.")})
    code = [file_digest(Path(file)) for file in own] + [repr(getattr(controller, "config", None))]
    fixed = lab.fingerprint(config.get("context", "default"))
    machine = asdict(this_machine(lab.device))
    key = digest(fixed, name, config, seed, code, machine, [f.name for f in fields(Episode)])
    foreign = [k for k in env.episodes.process.knowledge if not k.loss.__module__.startswith("kd_gym.")]
    file = cache_dir() / "scores" / f"{key}.json"
    if file.exists() and not foreign:
        return Episode(**json.loads(file.read_text()))
    episode = play(env, controller, seed)
    if lab.teacher.folder is not None and not foreign:  # the tiny backend leaves no files
        write_json(file, asdict(episode))
    return episode


@functools.cache
def teacher_scores(teacher: Teacher, split: Split, device: torch.device) -> dict[str, float]:
    """The scores of a teacher on a held-out split; nothing for the tiny backend, whose teachers are pretended."""
    if teacher.folder is None:
        return {}
    return checkpoint_scores(teacher.folder, teacher.data, split, device)


def checkpoint_scores(folder: Path, data: TaskData, split: Split, device: torch.device) -> dict[str, float]:
    """The scores of a checkpoint folder, opened with `transformers`, on a held-out split, by metric name."""
    model = load_teacher(folder, device).eval()
    rows = data.split(split).to(device)
    order = rows.by_length()
    with torch.inference_mode():
        said = [
            model(**teacher_inputs(rows.batch(part), data.vocabulary, model.config)).logits.argmax(-1)
            for part in order.split(64)
        ]
    predictions, labels = torch.cat(said).cpu().numpy(), rows.labels[order].cpu().numpy()
    return {metric: METRICS[metric](predictions, labels) for metric in data.task.metrics}
