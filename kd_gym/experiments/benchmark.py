"""Run a suite: every trial once, on one machine or many, and go on where an interrupted run stopped.

A folder of results holds `suite.yaml`, `records/` (one file for each finished trial: they are the results), `runs/`
(agents that were trained), `failures.json`, and the tables. Whatever is not whole is done again; nothing else is.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
import yaml

from kd_gym.errors import KDGymError
from kd_gym.experiments.evaluate import load_controller
from kd_gym.experiments.executors import Executor
from kd_gym.experiments.prepare import prepare
from kd_gym.experiments.records import Record, record_of
from kd_gym.experiments.score import play
from kd_gym.experiments.setup import EVALUATION_SEEDS
from kd_gym.experiments.suites import Suite, Trial, spec_of, trials_of
from kd_gym.experiments.train import train
from kd_gym.files import write_json, write_text
from kd_gym.plugins import nearest

Say = Callable[[str], None]


@dataclass(frozen=True)
class Results:
    """What a folder of results holds: records by trial, what failed and why, and files that could not be read."""

    folder: Path
    suite: Suite
    records: dict[Trial, Record]
    failures: dict[str, str]
    damaged: list[str]


def record_file(out: Path, trial: Trial) -> Path:
    """Where a finished trial lies."""
    return out / "records" / f"{trial.key}.json"


def agent_number(suite: Suite, trial: Trial) -> int:
    """Which of the trained agents of a kind plays a trial: evaluation seeds take them in turn."""
    return (trial.seed - EVALUATION_SEEDS) % suite.training.agents


def run_name(suite: Suite, trial: Trial) -> str:
    """Where the agent of a trial that learns is trained, in a folder of results."""
    place = agent_number(suite, trial)
    agent = trial.controller.replace(":", "_").replace("/", "_")
    return f"runs/{trial.env}/{agent}" + (f"-{place}" if place else "")


# ---------------------------------------------------------------------- jobs: what a worker does


def prepare_job(suite: Suite, env: str, contexts: tuple[str, ...]) -> str:
    """Make the teachers of an id, before several workers ask for them at once."""
    torch.set_num_threads(suite.threads)  # bits of a teacher depend on it too
    for context in contexts:
        prepare(spec_of(suite, env, context=context))
    return f"prepared {env}"


def training_job(suite: Suite, trial: Trial, out: Path) -> str:
    """Train the agent of a trial; one that was interrupted is trained anew, so that the result is the same."""
    torch.set_num_threads(suite.threads)
    folder, told = out / run_name(suite, trial), suite.training
    if not (folder / "result.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        spec = spec_of(suite, trial.env, context=told.context)
        steps, seed = told.episodes * spec.family.decisions, told.seed + agent_number(suite, trial)
        train(
            *(trial.env, trial.controller, steps, told.num_envs, seed, suite.data, "auto", suite.backend, folder),
            eval_seeds=1,
            env_config={"context": told.context},
        )
    return f"trained {trial.controller} on {trial.env}"


def trial_job(suite: Suite, trial: Trial, horizon: int | None, out: Path) -> str:
    """Play a trial and leave its record; returns a line about it."""
    torch.set_num_threads(suite.threads)
    budget = {} if horizon is None else {"horizon": horizon}
    spec = spec_of(suite, trial.env, context=trial.context, **budget)
    run = out / run_name(suite, trial) if trial.learns else None
    name = str(run) if run else trial.controller
    controller, fitted = load_controller(name, spec)
    env = fitted.make()
    episode = play(env, controller, trial.seed)
    record = record_of(fitted, controller, trial.controller, episode, run)
    record.write(record_file(out, trial))
    metric = record.metrics[0]
    return f"{trial.key}: report {metric} {episode.scores[metric]:.3f}, {episode.seconds:.0f} s"


# ---------------------------------------------------------------------- the run


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a folder of results; `KDGymError` says who has it."""
    out.mkdir(parents=True, exist_ok=True)
    lock, holder = filelock.FileLock(out / ".lock"), out / "in-use-by.txt"
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        who = holder.read_text().strip() if holder.exists() else "another run"
        raise KDGymError(f"{out} is in use by {who}") from None
    try:
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def read_results(out: Path, suite: Suite) -> Results:
    """What is there of a suite; damaged records are named, and count as not run."""
    records: dict[Trial, Record] = {}
    damaged: dict[str, None] = {}
    for stage in suite.stages:
        for trial in trials_of(suite, stage):
            file = record_file(out, trial)
            if file.exists() and trial not in records:
                try:
                    records[trial] = _read(file, trial)
                except KDGymError as error:
                    damaged[str(error)] = None
    failures = {name: why for name, why in _failures(out).items() if name not in {t.key for t in records}}
    return Results(out, suite, records, failures, list(damaged))


def _read(file: Path, trial: Trial) -> Record:
    record = Record.read(file)
    found = (record.env, record.controller, record.kwargs.get("context", "default"), record.episode.seed)
    if found != (trial.env, trial.controller, trial.context, trial.seed):
        raise KDGymError(f"{file} is damaged: it is of another trial")
    return record


def _failures(out: Path) -> dict[str, str]:
    try:
        told = json.loads((out / "failures.json").read_text())
    except (OSError, ValueError):  # none yet, or damaged: what failed is tried again anyway
        return {}
    return {str(name): str(why) for name, why in told.items()} if isinstance(told, dict) else {}


def check_same(out: Path, suite: Suite) -> None:
    """Raise `KDGymError` where the records in `out` were made under settings that this suite does not have."""
    file = out / "suite.yaml"
    told = yaml.safe_load(file.read_text()) if file.exists() else {}
    now = _plain(suite)
    for key in ("backend", "data", "threads", "training"):
        if key in told and told[key] != now[key]:
            raise KDGymError(f"{out} was begun with {key} {told[key]}, not {now[key]}; give another --out")


def horizon_of(trial: Trial, done: dict[Trial, Record]) -> int | None:
    """The updates of a trial's episode, None for the id's own.

    Raises:
        KeyError: they follow from trials that are not finished.
    """
    if not isinstance(trial.budget, str):
        return trial.budget
    if trial.budget == "own":
        return None
    own = dataclasses.replace(trial, budget="own")
    dear = done[dataclasses.replace(own, controller=trial.budget.removeprefix("cost of "))]
    for record in (dear, done[own]):
        if record.episode.failure:
            raise KDGymError(f"no budget follows from {record.controller}, which failed: {record.episode.failure}")
    total, spent = (record.episode.spent for record in (dear, done[own]))
    looks = done[own].episode.evaluation_flops  # as many of them however long the episode
    updates = dear.spec().family.recipe.process.horizon
    return round(updates * (total - looks) / (spent - looks))


def benchmark(suite: Suite, out: Path, run: Executor, stages: tuple[str, ...] = (), say: Say = print) -> Results:
    """Run all trials of a suite that are not finished in `out`.

    Args:
        suite: what to run.
        out: the folder of results; what it holds of the suite is kept.
        run: where jobs run.
        stages: some of the suite's; all by default.
        say: told a line for each job that has ended.
    """
    for name in stages:
        if name not in suite.stages:
            raise nearest("stage", name, suite.stages)
    out = out.resolve()  # workers may have another current folder
    if Path(suite.data).exists():
        suite = dataclasses.replace(suite, data=str(Path(suite.data).resolve()))
    with locked(out):
        check_same(out, suite)
        write_text(out / "suite.yaml", yaml.safe_dump(_plain(suite), sort_keys=False))
        found = read_results(out, suite)
        for line in found.damaged:
            say(f"{line}; it is run again")
        wanted = dict.fromkeys(trial for stage in stages or suite.stages for trial in trials_of(suite, stage))
        trials = [trial for trial in wanted if trial not in found.records]
        again = {name for t in wanted for name in (t.key, t.env, run_name(suite, t))}
        failures = Failures(out, {name: why for name, why in found.failures.items() if name not in again})
        with ThreadPoolExecutor(run.workers) as threads:
            try:
                _waves(suite, out, run, threads, trials, failures, say)
            except BaseException:  # an interruption: end what runs, so that its threads end too
                threads.shutdown(wait=False, cancel_futures=True)
                run.close()
                raise
        return read_results(out, suite)


class Failures(dict[str, str]):
    """Why trials, trainings and teachers failed, by name; written whenever one is added."""

    def __init__(self, out: Path, told: dict[str, str]) -> None:
        super().__init__(told)
        self._file = out / "failures.json"
        write_json(self._file, self)

    def __setitem__(self, name: str, why: str) -> None:
        super().__setitem__(name, why)
        write_json(self._file, self)


def _waves(
    suite: Suite,
    out: Path,
    run: Executor,
    threads: ThreadPoolExecutor,
    trials: list[Trial],
    failures: Failures,
    say: Say,
) -> None:
    """Teachers first, then trainings and what needs neither, then what needs those."""
    begin, done, total = time.perf_counter(), 0, len(trials)
    keys = {trial.key for trial in trials}

    def wave(jobs: dict[str, tuple[Any, ...]]) -> None:
        nonlocal done
        waiting: dict[Future[str], str] = {threads.submit(run, *job): name for name, job in jobs.items()}
        for future in as_completed(waiting):
            name = waiting[future]
            try:
                line = future.result()
            except Exception as error:
                failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                line = f"{name} failed: {failures[name]}"
            counted = name in keys
            done += counted
            spent = time.perf_counter() - begin
            left = f", about {spent / done * (total - done) / 60:.0f} min left" if counted and done else ""
            say(f"[{done}/{total}] {line}{left}")

    contexts: dict[str, dict[str, None]] = {}
    for trial in trials:
        more = (suite.training.context,) if trial.learns else ()
        contexts.setdefault(trial.env, {}).update(dict.fromkeys((trial.context, *more)))
    for env in contexts:
        say(f"[0/{total}] data and teachers of {env} first, where they are not there yet")
    wave({env: (prepare_job, suite, env, tuple(told)) for env, told in contexts.items()})

    records = read_results(out, suite).records
    while True:  # trials of trained agents, and those that cost as much as others, come when these are there
        jobs: dict[str, tuple[Any, ...]] = {}
        for trial in trials:
            training = run_name(suite, trial)
            if {trial.key, training, trial.env} & failures.keys() or trial in records:
                continue
            if trial.learns and not (out / training / "result.json").exists():
                jobs[training] = (training_job, suite, trial, out)
                continue
            try:
                jobs[trial.key] = (trial_job, suite, trial, horizon_of(trial, records), out)
            except KDGymError as error:
                failures[trial.key] = str(error)
            except KeyError:
                continue  # not yet: what its budget follows from is not there
        if not jobs:
            break
        wave(jobs)
        records = read_results(out, suite).records
        for trial in trials:
            if trial.key in jobs and trial not in records and trial.key not in failures:
                failures[trial.key] = "it left no whole record"
    for trial in trials:
        if trial not in records and not {trial.key, run_name(suite, trial), trial.env} & failures.keys():
            failures[trial.key] = f"what {trial.budget!r} follows from was not run"


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as YAML can hold them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
