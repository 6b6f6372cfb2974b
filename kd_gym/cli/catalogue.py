"""The commands that look things up and make them ready: prepare, doctor, list, describe."""

import dataclasses
import sys
from collections.abc import Sequence

from kd_gym.cli.options import (
    announce,
    changed,
    command_options,
    common,
    env_settings,
    make_console,
    option,
    parse,
    peek,
    progress_bars,
)
from kd_gym.errors import KDGymError


def prepare_command(arguments: Sequence[str]) -> int:
    """Fetch data, tune and store teachers ahead of time."""

    from kd_gym.experiments.prepare import prepare, score_teachers
    from kd_gym.experiments.setup import EnvSpec
    from kd_gym.experiments.tables import teacher_table

    (env,) = peek(arguments, "--env")
    fields = [
        ("env", option(str, "an env id, with or without -v0"), dataclasses.MISSING),
        *common(env_settings(env)),
    ]
    parsed = parse(command_options("Prepare", fields, prepare_command.__doc__ or ""), arguments, "prepare")
    spec = EnvSpec(parsed.env, parsed.data, parsed.device, parsed.backend, changed(parsed.env_config))
    console = make_console()
    announce(spec.lab(), spec, console)
    with progress_bars(console) as progress:
        lab = prepare(spec, progress)
        scores = score_teachers(spec, lab)
    console.print(teacher_table(lab, scores))
    return 0


def doctor_command(arguments: Sequence[str]) -> int:
    """Say what this machine has, and how many students of an id fit on it."""
    from kd_gym.envs.lab import resolve_device
    from kd_gym.experiments.doctor import facts_of_machine, fit
    from kd_gym.experiments.setup import EnvSpec

    (env,) = peek(arguments, "--fit")
    fields = [
        ("fit", option(str | None, "an env id: how many of its students fit; nothing else may need memory now"), None),
        *common(env_settings(env)),
    ]
    parsed = parse(command_options("Doctor", fields, doctor_command.__doc__ or ""), arguments, "doctor")
    console = make_console()
    for name, value in facts_of_machine(resolve_device(parsed.device)).items():
        console.print(f"{name:<14}{value}", highlight=False)
    if parsed.fit is not None:
        found = fit(EnvSpec(parsed.fit, parsed.data, parsed.device, parsed.backend, changed(parsed.env_config)))
        console.print(
            f"{parsed.fit}: {found.largest} students fit ({found.each / 2**20:.0f} MB each, "
            f"{found.free / 2**30:.1f} GB free)",
            highlight=False,
        )
    return 0


def list_command(arguments: Sequence[str]) -> int:
    """List envs, agents, tasks or knowledge types."""
    from rich.table import Table

    from kd_gym.experiments.describe import KINDS, names

    for kind in arguments or KINDS:
        table = Table("name", "what it is", title=kind, title_justify="left")
        for name, line in names(kind):
            table.add_row(name, line)
        make_console().print(table)
    return 0


def describe_command(arguments: Sequence[str]) -> int:
    """Print the page of an env, agent, task or knowledge type."""
    from kd_gym.experiments.describe import describe

    if len(arguments) != 1:
        raise KDGymError("describe takes one name: an env id, an agent, a task or a knowledge type")
    text = describe(arguments[0])
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        make_console().print(Markdown(text))
    else:
        sys.stdout.write(text + "\n")
    return 0
