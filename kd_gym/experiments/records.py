"""Records: what an evaluated episode leaves behind, enough to repeat it elsewhere and to compare."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from kd_gym.agents.protocol import Controller
from kd_gym.envs.contexts import teacher_sets
from kd_gym.envs.lab import Lab
from kd_gym.errors import KDGymError
from kd_gym.experiments.machine import Machine, this_machine
from kd_gym.experiments.runs import checkpoint_path
from kd_gym.experiments.score import Episode, teacher_scores
from kd_gym.experiments.setup import EnvSpec
from kd_gym.files import digest, file_digest, file_words, write_text

FORMAT = 1  # raised when the fields of a record change


@dataclass(frozen=True)
class Record:
    """One evaluated episode with all that fixes its numbers.

    Attributes:
        env: the full id.
        kwargs: its keyword arguments, without the data's place and the device.
        controller: by name; a trained one by its agent's.
        trained: whether it is the policy of a run, which the record does not hold: only its actions can be repeated.
        source: where the data came from.
        teachers: the hash of each teacher's weights, by name.
        episode: what happened.
        fixed: whether the controller does not look at the student.
        reads_reward: whether it learns from the labels of `reward`.
        metrics: of the task, the first one being the one that is compared.
        teacher: the scores of the first teacher, by metric.
        machine: where it was played.
        policy: a hash of a trained policy's files.
    """

    env: str
    kwargs: dict[str, Any]
    controller: str
    trained: bool
    fixed: bool
    reads_reward: bool
    source: str
    data_fingerprint: str
    metrics: tuple[str, ...]
    teachers: dict[str, str]
    teacher: dict[str, float]
    machine: Machine
    episode: Episode
    policy: str = ""
    format: int = FORMAT

    @property
    def key(self) -> str:
        """Tells episodes apart that are not repetitions of each other."""
        return digest(self.env, self.kwargs, self.data_fingerprint, self.controller, self.policy, self.episode.seed)

    def spec(self, data: str = "auto", device: str = "auto") -> EnvSpec:
        """The env that it was played in."""
        config = {key: value for key, value in self.kwargs.items() if key != "backend"}
        return EnvSpec(self.env, data, device, self.kwargs["backend"], config)

    @property
    def file_name(self) -> str:
        """Readable and unique in a folder of records."""
        told = [self.env, file_words(self.controller), self.kwargs.get("context", "default"), str(self.episode.seed)]
        return ".".join([*told, self.key[:6], "json"])

    def write(self, file: Path) -> None:
        """Write the record, whole or not at all."""
        write_text(file, json.dumps(asdict(self), sort_keys=True) + "\n")

    @classmethod
    def read(cls, file: Path) -> "Record":
        """Read what `write` wrote.

        Raises:
            KDGymError: a damaged file, or one of another version.
        """
        try:
            told = json.loads(file.read_text())
        except OSError as error:
            raise KDGymError(f"{file}: {error.strerror}") from None
        except ValueError:
            raise KDGymError(f"{file} is damaged: it is not whole JSON") from None
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise KDGymError(f"{file} is no record of this version (format {FORMAT})")
        try:
            parts = {"machine": Machine(**told["machine"]), "episode": Episode(**told["episode"])}
            return cls(**{**told, **parts, "metrics": tuple(told["metrics"])})
        except (KeyError, TypeError):
            names = ", ".join(field.name for field in fields(cls))
            raise KDGymError(f"{file} is damaged: a record has {names}") from None


def record_of(spec: EnvSpec, controller: Controller, name: str, episode: Episode, run: Path | None = None) -> Record:
    """The record of an episode that a controller (the policy of a run, if one is given) played in an env of this spec,
    without its notes on each sample.
    """
    lab = spec.lab()
    kwargs = {key: value for key, value in spec.kwargs.items() if key not in ("data", "device")}
    notes = {key: value for key, value in episode.notes.items() if not _nested(value)}
    return Record(
        env=spec.id,
        kwargs=kwargs,
        controller=name,
        trained=getattr(controller, "learns", False),
        fixed=getattr(controller, "fixed", False),
        reads_reward=getattr(controller, "reads_reward", False),
        source=lab.data.source,
        data_fingerprint=lab.data.fingerprint,
        metrics=lab.data.task.metrics,
        teachers=teacher_hashes(lab, spec),
        teacher=teacher_scores(lab.teacher, "report", lab.device),
        machine=this_machine(lab.device),
        episode=replace(episode, notes=notes),
        policy="" if run is None else policy_digest(run),
    )


def policy_digest(run: Path) -> str:
    """A hash of the files of a run's best policy."""
    folder = checkpoint_path(run, "best") or checkpoint_path(run, "checkpoint")
    files = sorted(folder.iterdir()) if folder else []
    return digest([(file.name, file_digest(file)) for file in files])


def teacher_hashes(lab: Lab, spec: EnvSpec) -> dict[str, str]:
    """The hash of every teacher that the env's contexts ask for, by name."""
    sets = teacher_sets(spec.config.get("context", "default"))
    return {made.spec.name: made.hash for name in (None, *sets) for made in lab.teachers(name)}


def _nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, list) for item in value)
