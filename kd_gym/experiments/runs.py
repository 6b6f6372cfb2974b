"""Run directories: what a training leaves behind, and how it is read again.

config.yaml   what was run          best/         the policy that did best on `select`
command.txt   the command           checkpoint/   the last state, for --resume
result.json   the final table       events.*      TensorBoard
records/      evaluated episodes
"""

import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from kd_gym.agents.protocol import Controller
from kd_gym.errors import KDGymError
from kd_gym.experiments.setup import EnvSpec, agent_for
from kd_gym.files import write_json, write_text

# what a training may do otherwise than where its policy is scored, without another action or observation
_OF_TRAINING = ("context", "reward", "reward_every", "rows", "horizon", "student", "learning_rate")


@dataclass(frozen=True)
class RunConfig:
    """All that a training was started with."""

    env: str
    agent: str
    steps: int
    num_envs: int
    seed: int
    data: str
    device: str
    backend: str
    eval_seeds: int
    env_config: dict[str, Any] = field(default_factory=dict)
    agent_config: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> EnvSpec:
        """The env of the run."""
        return EnvSpec(self.env, self.data, self.device, self.backend, dict(self.env_config))  # type: ignore[arg-type]

    def controller(self, env: Any) -> Controller:
        """The run's agent, not yet trained."""
        cls, argument, _ = agent_for(self.agent, self.spec)
        config = getattr(cls, "Config", Controller.Config)(**self.agent_config)
        return cls(env, seed=self.seed, config=config, argument=argument)

    def write(self, folder: Path) -> None:
        """Write `config.yaml`."""
        write_text(folder / "config.yaml", yaml.safe_dump(asdict(self), sort_keys=False))


def is_run(name: str) -> bool:
    """Whether a word names a run directory."""
    return (Path(name) / "config.yaml").is_file()


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run directory."""
    if not is_run(str(folder)):
        raise KDGymError(f"{folder} is no run directory: it has no config.yaml")
    try:
        loaded = yaml.safe_load((folder / "config.yaml").read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        loaded = None
    names = {f.name for f in fields(RunConfig)}
    if not isinstance(loaded, dict) or set(loaded) != names:
        raise KDGymError(f"{folder / 'config.yaml'} is not of this version: it should have {', '.join(sorted(names))}")
    return RunConfig(**loaded)


def config_for(folder: Path, spec: EnvSpec) -> RunConfig:
    """`read_config`, where the run's policy is of the family of `spec`; `KDGymError` otherwise."""
    config = read_config(folder)
    if config.spec.family_name != spec.family_name:
        raise KDGymError(f"the policy in {folder} was trained on {config.env}; it cannot control {spec.id}")
    return config


def save_checkpoint(controller: Controller, folder: Path, name: str, about: dict[str, Any]) -> None:
    """Write a controller's state to `folder/name`, whole or not at all."""
    partial, target, old = (folder / f"{name}{suffix}" for suffix in (".partial", "", ".old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    controller.save(partial)
    write_json(partial / "about.json", about)
    if target.exists():  # or else a kill has left `old` as the only whole one
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def checkpoint_path(folder: Path, name: str) -> Path | None:
    """Where a checkpoint is, also if the process was killed while it was exchanged."""
    return next((p for p in (folder / name, folder / f"{name}.old") if p.is_dir()), None)


def load_run(folder: Path, spec: EnvSpec) -> tuple[Controller, EnvSpec]:
    """The best policy of a run, and an env of `spec`'s id with the spaces that the policy was trained on."""
    config = config_for(folder, spec)
    kept = {k: v for k, v in config.env_config.items() if k not in _OF_TRAINING}
    fitted = EnvSpec(spec.env, spec.data, spec.device, spec.backend, {**kept, **spec.config})
    path = checkpoint_path(folder, "best") or checkpoint_path(folder, "checkpoint")
    if path is None:
        raise KDGymError(f"{folder} has no policy yet; resume it with: kd-gym train --resume {folder}")
    env = fitted.make()
    trained = config.spec.make()
    if env.observation_space != trained.observation_space or env.action_space != trained.action_space:
        raise KDGymError(f"the policy in {folder} was trained on {config.env}, whose spaces differ from {fitted.id}'s")
    controller = config.controller(env)
    controller.load(path)
    return controller, fitted
