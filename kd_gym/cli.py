"""The command line: parse, call one function, print.

`--env` and `--agent` are read first, because they say which `--env-config.*` and `--agent-config.*` there are.
"""

import argparse
import dataclasses
import difflib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from kd_gym.errors import KDGymError

COMMANDS = ("train", "evaluate", "distill", "prepare", "list", "describe")
USAGE = """usage: kd-gym COMMAND ...

  train      train an agent and score it beside the fixed controls
  evaluate   score controllers and trained runs in one paired table
  distill    distil one student at full length and write it as a Hugging Face checkpoint
  prepare    fetch data, tune and store teachers ahead of time
  list       envs, agents, tasks or knowledge types
  describe   the page of an env, agent, task or knowledge type

`kd-gym COMMAND --help` says more. Start with: kd-gym train --env KnowledgeSelect-SST2 --agent ppo
"""


def _peek(arguments: Sequence[str], *names: str) -> list[str | None]:
    """The values of some options, before the real parse."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(name, nargs="?")  # the real parse complains of a missing value
    found, _ = parser.parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    return [getattr(found, name.lstrip("-").replace("-", "_")) for name in names]


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)


def _progress(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _parse(kind: Any, arguments: Sequence[str], command: str) -> Any:
    import tyro

    return tyro.cli(kind, args=list(arguments), prog=f"kd-gym {command}", config=(tyro.conf.OmitSubcommandPrefixes,))


def _env_config(env: str | None) -> Any:
    """A dataclass of the keyword arguments that the env takes."""
    from kd_gym.experiments.setup import env_arguments

    fields = []
    if env is not None:
        for name, parameter in env_arguments(env).items():
            kind, default = parameter.annotation, parameter.default
            if name == "action":  # None: the one that the agent prefers
                kind, default = kind | None, None
            fields.append((name, kind, dataclasses.field(default=default)))
    return dataclasses.make_dataclass("EnvConfig", fields, frozen=True)


def _agent_config(agent: str | None) -> Any:
    from kd_gym.agents.protocol import NoConfig, agent_class

    return getattr(agent_class(agent)[0], "Config", NoConfig) if agent else NoConfig


def _changed(config: Any) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if getattr(config, f.name) != f.default}


Device = Literal["auto", "cpu", "cuda"]
_DATA = "auto, hub, embedded, a folder, a file, or TRAIN,VALIDATION files"


def _option(kind: Any, text: str) -> Any:
    """A field's type with its line of help."""
    import tyro

    return Annotated[kind, tyro.conf.arg(help=text)]


def _common(env_config: Any) -> list[tuple[str, Any, Any]]:

    return [
        ("data", _option(str, _DATA), "auto"),
        ("device", _option(Device, "where students live"), "auto"),
        ("backend", _option(Literal["full", "tiny"], "tiny: random models and generated text"), "full"),
        ("env_config", _option(env_config, "the env's own arguments"), env_config()),
    ]


def _dataclass(name: str, fields: list[tuple[str, Any, Any]], doc: str) -> Any:
    made = dataclasses.make_dataclass(
        name,
        [(f, kind, dataclasses.field(default=default)) for f, kind, default in fields],
        frozen=True,
        kw_only=True,
    )
    made.__doc__ = doc
    return made


def _announce(lab: Any, spec: Any, console: Any) -> None:
    console.print(f"env {spec.id} | data {lab.data.source} | data fingerprint {lab.data.fingerprint}", highlight=False)
    if lab.data.notice:
        console.print(f"[bold yellow]{lab.data.notice}[/]")


def _train(arguments: Sequence[str]) -> int:
    """Train an agent in an env and score it beside the fixed controls."""

    from kd_gym.experiments.runs import read_config
    from kd_gym.experiments.setup import EnvSpec
    from kd_gym.experiments.tables import comparison_table
    from kd_gym.experiments.train import resume, train

    env, agent, folder = _peek(arguments, "--env", "--agent", "--resume")
    console = _console()
    if folder is not None:
        if list(arguments) not in (["--resume", folder], [f"--resume={folder}"]):
            raise KDGymError("--resume RUN goes on as the run was started; it takes no other option")
        spec = read_config(Path(folder)).spec
        _announce(spec.lab(), spec, console)
        with _progress(console) as progress:
            result = resume(Path(folder), progress)
    else:
        env_config, agent_config = _env_config(env), _agent_config(agent)
        fields = [
            ("env", _option(str, "an env id, with or without -v0"), dataclasses.MISSING),
            ("agent", _option(str, "an agent's name, or module:Class"), dataclasses.MISSING),
            ("steps", _option(int | None, "decisions, all students together; default: 100 episodes"), None),
            ("num_envs", _option(int, "students trained at the same time"), 4),
            ("seed", _option(int, "of the agent and of all episodes"), 0),
            ("out", _option(Path | None, "the run directory; default: a new one under runs/"), None),
            ("eval_seeds", _option(int, "episodes of each controller in the final table"), 3),
            ("resume", _option(Path | None, "go on with this interrupted run instead"), None),
            *_common(env_config),
            ("agent_config", _option(agent_config, "the agent's own settings"), agent_config()),
        ]
        parsed = _parse(_dataclass("Train", fields, _train.__doc__ or ""), arguments, "train")
        spec = EnvSpec(parsed.env, parsed.data, parsed.device, parsed.backend, _changed(parsed.env_config))
        _announce(spec.lab(), spec, console)
        with _progress(console) as progress:
            result = train(
                parsed.env,
                parsed.agent,
                parsed.steps,
                parsed.num_envs,
                parsed.seed,
                parsed.data,
                parsed.device,
                parsed.backend,
                parsed.out,
                parsed.eval_seeds,
                spec.config,
                _changed(parsed.agent_config),
                "kd-gym train " + shlex.join(arguments),
                progress,
            )
    console.print(comparison_table(result.comparison))
    console.print(result.comparison.verdict(result.comparison.rows[0].name), highlight=False)
    console.print(
        f"run: {result.folder} ({result.seconds:.0f} s); curves: tensorboard --logdir {result.folder}",
        highlight=False,
    )
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    """Score controllers and trained runs on the same seeds of an env."""
    import tyro

    from kd_gym.envs.contexts import context_set
    from kd_gym.experiments.evaluate import check_controller, evaluate, write_comparison
    from kd_gym.experiments.setup import EnvSpec
    from kd_gym.experiments.tables import comparison_table

    (env,) = _peek(arguments, "--env")

    fields = [
        ("controllers", tyro.conf.Positional[tuple[str, ...]], dataclasses.MISSING),
        ("env", _option(str, "an env id, with or without -v0"), dataclasses.MISSING),
        ("seeds", _option(int, "episodes of each controller"), 5),
        ("context", _option(str, "default, train, held-out, or one by name"), "default"),
        ("json", _option(Path | None, "write everything to this file too"), None),
        *_common(_env_config(env)),
    ]
    parsed = _parse(_dataclass("Evaluate", fields, _evaluate.__doc__ or ""), arguments, "evaluate")
    if not parsed.controllers:
        raise KDGymError("name at least one controller or run directory")
    config = {"context": parsed.context, **_changed(parsed.env_config)}
    context_set(config["context"])
    spec = EnvSpec(parsed.env, parsed.data, parsed.device, parsed.backend, config)
    console = _console()
    for name in parsed.controllers:
        check_controller(name, spec)
    _announce(spec.lab(), spec, console)
    with _progress(console) as progress:
        comparison = evaluate(parsed.controllers, spec, parsed.seeds, progress)
    console.print(comparison_table(comparison))
    for row in comparison.rows:
        if sentence := comparison.verdict(row.name):
            console.print(sentence, highlight=False)
    if parsed.json:
        write_comparison(comparison, parsed.json)
    return 0


def _distill(arguments: Sequence[str]) -> int:
    """Distil one student under a frozen controller, and write it as a Hugging Face checkpoint with a model card."""
    from kd_gym.experiments.distill import distill
    from kd_gym.experiments.evaluate import check_controller
    from kd_gym.experiments.setup import EnvSpec
    from kd_gym.experiments.tables import distilled_table

    (env,) = _peek(arguments, "--env")
    fields = [
        ("env", _option(str, "an env id, with or without -v0"), dataclasses.MISSING),
        ("controller", _option(str, "a controller's name, or a run directory"), dataclasses.MISSING),
        ("out", _option(Path, "the folder of the checkpoint"), dataclasses.MISSING),
        ("budget", _option(int | None, "updates; default: three epochs"), None),
        ("seed", _option(int, "of the student and its data order"), 0),
        ("select", _option(bool, "keep the student that did best on select, not the last one"), False),
        ("onnx", _option(bool, "write model.onnx too"), False),
        *_common(_env_config(env)),
    ]
    parsed = _parse(_dataclass("Distill", fields, _distill.__doc__ or ""), arguments, "distill")
    spec = EnvSpec(parsed.env, parsed.data, parsed.device, parsed.backend, _changed(parsed.env_config))
    check_controller(parsed.controller, spec)
    console = _console()
    _announce(spec.lab(), spec, console)
    with _progress(console) as progress:
        found = distill(
            parsed.controller,
            spec,
            parsed.out,
            parsed.budget,
            parsed.seed,
            parsed.select,
            parsed.onnx,
            "kd-gym distill " + shlex.join(arguments),
            progress,
        )
    console.print(distilled_table(found))
    console.print(f"checkpoint and card: {found.folder}", highlight=False)
    return 0


def _prepare(arguments: Sequence[str]) -> int:
    """Fetch data, tune and store teachers ahead of time."""

    from kd_gym.experiments.prepare import prepare, score_teachers
    from kd_gym.experiments.setup import EnvSpec
    from kd_gym.experiments.tables import teacher_table

    (env,) = _peek(arguments, "--env")
    fields = [
        ("env", _option(str, "an env id, with or without -v0"), dataclasses.MISSING),
        *_common(_env_config(env)),
    ]
    parsed = _parse(_dataclass("Prepare", fields, _prepare.__doc__ or ""), arguments, "prepare")
    spec = EnvSpec(parsed.env, parsed.data, parsed.device, parsed.backend, _changed(parsed.env_config))
    console = _console()
    _announce(spec.lab(), spec, console)
    with _progress(console) as progress:
        lab = prepare(spec, progress)
        scores = score_teachers(spec, lab)
    console.print(teacher_table(lab, scores))
    return 0


def _list(arguments: Sequence[str]) -> int:
    """List envs, agents, tasks or knowledge types."""
    from rich.table import Table

    from kd_gym.experiments.describe import KINDS, names

    for kind in arguments or KINDS:
        table = Table("name", "what it is", title=kind, title_justify="left")
        for name, line in names(kind):
            table.add_row(name, line)
        _console().print(table)
    return 0


def _describe(arguments: Sequence[str]) -> int:
    """Print the page of an env, agent, task or knowledge type."""
    from kd_gym.experiments.describe import describe

    if len(arguments) != 1:
        raise KDGymError("describe takes one name: an env id, an agent, a task or a knowledge type")
    text = describe(arguments[0])
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        _console().print(Markdown(text))
    else:
        sys.stdout.write(text + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: exit code 0, or 2 with one line for a mistake that the user can mend."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        sys.exit(0)
    if given[0] == "--version":
        from kd_gym import __version__

        sys.stdout.write(f"kd-gym {__version__}\n")
        sys.exit(0)
    handlers: dict[str, Callable[[Sequence[str]], int]] = {
        "train": _train, "evaluate": _evaluate, "distill": _distill,
        "prepare": _prepare, "list": _list, "describe": _describe,
    }  # fmt: skip
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        if given[0] not in handlers:
            close = difflib.get_close_matches(given[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(COMMANDS)}"
            raise KDGymError(f"unknown command {given[0]!r}: {hint}")
        sys.exit(handlers[given[0]](given[1:]))
    except KDGymError as error:
        sys.stderr.write(f"kd-gym: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        more = "; `kd-gym train --resume RUN` goes on from the last checkpoint" if given[0] == "train" else ""
        sys.stderr.write(f"kd-gym: interrupted{more}\n")
        sys.exit(130)
