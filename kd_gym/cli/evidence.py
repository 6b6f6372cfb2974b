"""The commands that gather evidence: benchmark, validate."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_gym.cli.options import DATA, Device, command_options, make_console, option, parse
from kd_gym.errors import KDGymError


def benchmark_command(arguments: Sequence[str]) -> int:
    """Run every trial of a suite that is not finished, and write the tables. Exit code 1 if a trial failed."""
    import tyro

    from kd_gym.experiments.benchmark import benchmark
    from kd_gym.experiments.executors import ExecutorKind, executor
    from kd_gym.experiments.suites import load_suite
    from kd_gym.experiments.summary import write_tables

    fields = [
        ("suite", tyro.conf.Positional[str], dataclasses.MISSING),
        ("out", option(Path | None, "the folder of results; default: runs/benchmark-SUITE"), None),
        ("resume", option(bool, "go on in a folder that holds results"), False),
        ("stages", option(tuple[str, ...], "some of the suite's stages; default: all"), ()),
        ("executor", option(ExecutorKind, "where trials run"), "local"),
        ("workers", option(int | None, "trials at the same time; default: one for each core"), None),
        ("address", option(str, "of a Ray cluster"), "auto"),
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
    if parsed.workers is not None and parsed.workers < 1:
        raise KDGymError(f"--workers must be at least 1, not {parsed.workers}")
    console = make_console()
    run = executor(parsed.executor, parsed.workers, parsed.address)
    try:
        found = benchmark(suite, out, run, parsed.stages, lambda line: _print(console, line))
    finally:
        run.close()
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
