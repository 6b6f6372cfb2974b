"""What the commands share: options, their parser, and the console."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

Device = Literal["auto", "cpu", "cuda"]
DATA = "auto, hub, embedded, a folder, a file, or TRAIN,VALIDATION files"


def peek(arguments: Sequence[str], *names: str) -> list[str | None]:
    """The values of some options, before the real parse."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(name, nargs="?")  # the real parse complains of a missing value
    found, _ = parser.parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    return [getattr(found, name.lstrip("-").replace("-", "_")) for name in names]


def make_console() -> Any:
    """The console: as wide as the terminal, or 140 columns where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)


def progress_bars(console: Any) -> Any:
    """Progress bars with time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def parse(kind: Any, arguments: Sequence[str], command: str) -> Any:
    """The options of a command, as tyro reads them."""
    import tyro

    return tyro.cli(kind, args=list(arguments), prog=f"kd-gym {command}", config=(tyro.conf.OmitSubcommandPrefixes,))


def env_settings(env: str | None) -> Any:
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


def agent_settings(agent: str | None) -> Any:
    """The dataclass of an agent's settings."""
    from kd_gym.agents.protocol import NoConfig, agent_class

    return getattr(agent_class(agent)[0], "Config", NoConfig) if agent else NoConfig


def changed(config: Any) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if getattr(config, f.name) != f.default}


def option(kind: Any, text: str) -> Any:
    """A field's type with its line of help."""
    import tyro

    return Annotated[kind, tyro.conf.arg(help=text)]


def common(env_config: Any) -> list[tuple[str, Any, Any]]:
    """The options of every command that makes an env."""
    return [
        ("data", option(str, DATA), "auto"),
        ("device", option(Device, "where students live"), "auto"),
        ("backend", option(Literal["full", "tiny"], "tiny: random models and generated text"), "full"),
        ("env_config", option(env_config, "the env's own arguments"), env_config()),
    ]


def command_options(name: str, fields: list[tuple[str, Any, Any]], doc: str) -> Any:
    """A dataclass of options, with the text of its help."""
    made = dataclasses.make_dataclass(
        name,
        [(f, kind, dataclasses.field(default=default)) for f, kind, default in fields],
        frozen=True,
        kw_only=True,
    )
    made.__doc__ = doc
    return made


def announce(lab: Any, spec: Any, console: Any) -> None:
    """Say which env and which data."""
    console.print(f"env {spec.id} | data {lab.data.source} | data fingerprint {lab.data.fingerprint}", highlight=False)
    if lab.data.notice:
        console.print(f"[bold yellow]{lab.data.notice}[/]")
