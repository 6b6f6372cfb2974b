"""The commands that gather evidence: benchmark, validate, report, tune."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_gym.cli.options import (
    DATA,
    Device,
    changed,
    command_options,
    common,
    env_settings,
    make_console,
    option,
    parse,
    peek,
)
from kd_gym.errors import KDGymError


def benchmark_command(arguments: Sequence[str]) -> int:
    """Run every trial of a suite that is not finished, and write the tables. Exit code 1 if a trial failed."""
    import tyro

    from kd_gym.experiments.benchmark import benchmark
    from kd_gym.experiments.publish import write_tables
    from kd_gym.experiments.suites import load_suite

    fields = [
        ("suite", tyro.conf.Positional[str], dataclasses.MISSING),
        ("out", option(Path | None, "the folder of results; default: runs/benchmark-SUITE"), None),
        ("resume", option(bool, "go on in a folder that holds results"), False),
        ("stages", option(tuple[str, ...], "some of the suite's stages; default: all"), ()),
        *_where("trials"),
        ("data", option(str | None, f"{DATA}; default: the suite's"), None),
    ]
    doc = benchmark_command.__doc__ or ""
    parsed = parse(command_options("Benchmark", fields, doc), arguments, "benchmark")
    suite = load_suite(parsed.suite)
    if parsed.data is not None:
        suite = dataclasses.replace(suite, data=parsed.data)
    out = parsed.out or Path("runs") / f"benchmark-{Path(parsed.suite).stem}"
    if (out / "records").exists() and not parsed.resume:
        raise KDGymError(f"{out} holds results; go on with --resume, or give another --out")
    console = make_console()
    with _executor(parsed) as run:
        found = benchmark(suite, out, run, parsed.stages, lambda line: _print(console, line))
    write_tables(found)
    for name, why in found.failures.items():
        _print(console, f"failed: {name}: {why}")
    _print(console, f"{len(found.records)} records and table.md, table.tex, table.json: {out}")
    return 1 if found.failures else 0


def _print(console: Any, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def validate_command(arguments: Sequence[str]) -> int:
    """Play recorded episodes again and compare.

    Exit code 1 if one differs, 3 if none does but some cannot be compared.
    """
    import tyro

    from kd_gym.experiments.validate import records_in, validate

    fields = [
        ("records", tyro.conf.Positional[tuple[Path, ...]], dataclasses.MISSING),
        ("data", option(str, DATA), "auto"),
        ("device", option(Device, "where students live"), "auto"),
    ]
    parsed = parse(command_options("Validate", fields, validate_command.__doc__ or ""), arguments, "validate")
    if not parsed.records:
        raise KDGymError("name at least one record, or a folder of records")
    console, words = make_console(), []
    marks = {"repeated": "✓", "differs": "✗", "not comparable": "–"}
    for file in records_in(parsed.records):
        verdict = validate(file, parsed.data, parsed.device)
        words.append(verdict.word)
        told = "exactly" if verdict.exact and verdict.word == "repeated" else verdict.why
        _print(console, f"{marks[verdict.word]} {file.name}: {verdict.word}" + (f" ({told})" if told else ""))
        for difference in verdict.differences:
            _print(console, f"    {difference}")
    counts = ", ".join(f"{words.count(word)} {word}" for word in marks if word in words)
    _print(console, counts)
    return 1 if "differs" in words else 3 if "not comparable" in words else 0


def report_command(arguments: Sequence[str]) -> int:
    """Write one self-contained HTML page, and each of its figures as a PNG file."""
    import tyro

    from kd_gym.experiments.report import report

    fields = [
        ("place", tyro.conf.Positional[Path], dataclasses.MISSING),
        ("out", option(Path | None, "the folder of the page; default: report inside the place"), None),
    ]
    parsed = parse(command_options("Report", fields, report_command.__doc__ or ""), arguments, "report")
    _print(make_console(), f"report: {report(parsed.place, parsed.out)}")
    return 0


def tune_command(arguments: Sequence[str]) -> int:
    """Train an agent with many settings and say which is best on `select`. The first trial is its defaults."""
    from kd_gym.experiments.tune import tune

    (env,) = peek(arguments, "--env")
    fields = [
        ("env", option(str, "an env id, with or without -v0"), dataclasses.MISSING),
        ("agent", option(str, "the name of an agent that learns"), dataclasses.MISSING),
        ("trials", option(int, "how many trainings, those already there included"), dataclasses.MISSING),
        ("steps", option(int | None, "decisions of each training; default: 100 episodes"), None),
        ("num_envs", option(int, "students trained at the same time"), 4),
        ("seed", option(int, "of the search, and of every training"), 0),
        ("out", option(Path | None, "the folder of the search; default: runs/tune-ENV-AGENT"), None),
        ("resume", option(bool, "go on in a folder that holds a search"), False),
        *_where("trainings"),
        *common(env_settings(env)),
    ]
    parsed = parse(command_options("Tune", fields, tune_command.__doc__ or ""), arguments, "tune")
    out = parsed.out or Path("runs") / f"tune-{parsed.env}-{parsed.agent.replace(':', '_')}"
    if (out / "trials.log").exists() and not parsed.resume:
        raise KDGymError(f"{out} holds a search; go on with --resume, or give another --out")
    console = make_console()
    with _executor(parsed) as run:
        found = tune(
            *(parsed.env, parsed.agent, parsed.trials, run, out, parsed.steps, parsed.num_envs, parsed.seed),
            *(parsed.data, parsed.device, parsed.backend, changed(parsed.env_config)),
            say=lambda line: _print(console, line),
        )
    if not found.tried:
        raise KDGymError(f"no trial came to its end: {found.failures[0]}")
    score, settings = found.tried[0]
    told = "" if found.default is None else f" (the defaults: {found.default:.4f})"
    _print(console, f"best select {found.metric}: {score:.4f}{told}, the best of {len(found.tried)}; train with it:")
    asked = {"data": parsed.data, "device": parsed.device, "backend": parsed.backend, "steps": parsed.steps}
    asked |= {"num-envs": parsed.num_envs, "seed": parsed.seed}
    asked |= {f"env-config.{name}": value for name, value in changed(parsed.env_config).items()}
    asked |= {f"agent-config.{name}": value for name, value in settings.items()}
    words = [_word(name.replace("_", "-"), value) for name, value in asked.items() if value not in (None, "auto")]
    _print(console, f"kd-gym train --env {parsed.env} --agent {parsed.agent} {' '.join(words)}")
    return 1 if found.failures else 0


def _word(name: str, value: Any) -> str:
    """An option as the command line has it; switches are `--a.b` and `--a.no-b`."""
    if isinstance(value, bool):
        group, _, last = name.rpartition(".")
        return f"--{group}.{'' if value else 'no-'}{last}"
    return f"--{name} {value}"


def _where(jobs: str) -> list[tuple[str, Any, Any]]:
    """The options that say where jobs run."""
    from kd_gym.experiments.executors import ExecutorKind

    return [
        ("executor", option(ExecutorKind, f"where {jobs} run"), "local"),
        ("workers", option(int | None, f"{jobs} at the same time; default: one for each core"), None),
        ("address", option(str, "of a Ray cluster"), "auto"),
    ]


def _executor(parsed: Any) -> contextlib.closing[Any]:
    """The executor that these options name; its workers are let go at the end of the `with`."""
    from kd_gym.experiments.executors import executor

    if parsed.workers is not None and parsed.workers < 1:
        raise KDGymError(f"--workers must be at least 1, not {parsed.workers}")
    return contextlib.closing(executor(parsed.executor, parsed.workers, parsed.address))
