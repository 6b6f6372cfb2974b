"""Tables of controllers on one family of a task: score, reward and cost, in the default and in noisy contexts.

    python benchmarks/tables.py SST2 KnowledgeSelect [--minutes 25] [--out benchmarks/results/tables]

Every table is one `kd-gym evaluate` command, which stands above it: at first of the controllers that need no training,
then with the learners too (trained once each, seed 0, on the training contexts), then with the dear ones, one by one.
What is done is not done again, so the script goes on where it stopped, and what does not fit into the minutes is marked
'not run'. The page states its arithmetic first. Runs lie under `runs/tables`. The page `Methods` has the gradient-based
methods and the classical baselines of `KnowledgeSelect`.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd_gym.agents.protocol import agent_class
from kd_gym.envs.contexts import TRAIN
from kd_gym.experiments.facts import facts
from kd_gym.experiments.setup import EnvSpec
from kd_gym.experiments.stats import interval, paired
from kd_gym.files import digest, write_json, write_text

SEEDS = 5
EPISODES = 40  # of one training
TRAINING = EPISODES + 12  # with the looks at `select` and the last table
RUNS = Path("runs/tables")

# how many plain episodes one episode of a controller costs, where that is far from one
DEAR = {
    "greedy": 10.0,
    **dict.fromkeys(("lgtm", "ikd", "meta-distil", "prokt"), 18.0),
    **dict.fromkeys(("takd", "minilm", "tinybert", "pesf-kd"), 7.0),
}


@dataclass(frozen=True)
class Page:
    """What a page shows: controllers of an env family, those that are trained first, and the contexts."""

    family: str
    learners: tuple[str, ...]
    others: tuple[str, ...]
    contexts: tuple[str, ...] = ("default", "noise-40", "wrong-teacher")
    baseline: str = ""  # what differences are against; else the best fixed control of the training contexts
    dearest: str = ""  # whose cost the plain ones are given too, as longer episodes, in one more table


PAGES = {
    "KnowledgeSelect": Page(
        "KnowledgeSelect",
        ("ppo", "aks", "dqn", "a2c", "sac", "td3"),
        (
            *("uniform", "random", "single:hard", "single:response", "static:1,0,1,0", "schedule:anneal"),
            *("dynamic-kd", "exp3", "linucb", "greedy"),
        ),
    ),
    "TeacherWeight": Page(
        "TeacherWeight",
        ("ppo", "rlkd"),
        (
            *("uniform", "random", "single:full", "single:shallow", "best-single", "weighted-ensemble"),
            *("ca-mkd", "govern", "dynamic-kd", "exp3", "linucb", "greedy"),
        ),
    ),
    "SamplePriority": Page(
        "SamplePriority", ("ppo",), ("uniform", "random", "curriculum", "curriculum:back", "dynamic-kd")
    ),
    "JointControl": Page("JointControl", ("ppo",), ("uniform", "random")),
    "Methods": Page(
        "KnowledgeSelect",
        ("ppo", "aks"),
        (
            *("uniform", "kd", "pkd-skip", "pkd-last", "skd", "dist", "rkd", "annealed-kd", "rco", "dml"),
            *("takd", "minilm", "tinybert", "pesf-kd", "lgtm", "ikd", "meta-distil", "prokt"),
        ),
        ("default",),
        baseline="kd",
        dearest="lgtm",
    ),
}


@dataclass(frozen=True)
class Table:
    """One table of a page."""

    task: str
    page: Page
    context: str
    updates: int | None = None  # of an episode, where not the id's own

    @property
    def key(self) -> str:
        """What tells it from other tables of its page."""
        return self.context if self.updates is None else f"{self.context}, at the cost of {self.page.dearest}"

    @property
    def env(self) -> str:
        """The id."""
        return f"{self.page.family}-{self.task}"

    def command(self, dear: int) -> list[str]:
        """What makes it, with the learners that are trained so far and so many of the dear controllers."""
        runs = [str(run) for agent in self.page.learners if finished(run := run_folder(self.env, agent))]
        left_out = [name for name in self.page.others if name in DEAR][0 if self.updates else dear :]
        names = [name for name in self.page.others if name not in left_out]
        return [
            *("kd-gym", "evaluate", *runs, *names, "--env", self.env),
            *("--context", self.context, "--seeds", str(SEEDS)),
            *(("--env-config.horizon", str(self.updates)) if self.updates else ()),
        ]


def meaning(env: str) -> str:
    """A hash over what an id means: of another one, neither trainings nor tables are taken over."""
    return digest(EnvSpec(env).family.recipe.hash, [asdict(context) for context in TRAIN])[:6]


def run_folder(env: str, agent: str) -> Path:
    """Where a training lies."""
    return RUNS / f"{env}-{meaning(env)}" / agent


def finished(run: Path) -> bool:
    """Whether a training came to its end."""
    return (run / "result.json").exists()


def training(env: str, agent: str) -> list[str]:
    """The command of a training; an interrupted one goes on."""
    folder = run_folder(env, agent)
    if folder.exists():
        return ["kd-gym", "train", "--resume", str(folder)]
    spec = EnvSpec(env).for_agent(agent_class(agent)[0])
    steps = EPISODES * spec.family.decisions
    return [
        *("kd-gym", "train", "--env", env, "--agent", agent, "--steps", str(steps), "--num-envs", "4"),
        *("--eval-seeds", "1", "--env-config.context", "train", "--out", str(folder)),
    ]


def run(command: list[str]) -> None:
    """A kd-gym command, in this interpreter's environment; what it prints is shown if it fails."""
    done = subprocess.run([sys.executable, "-m", "kd_gym", *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}")


def made(table: Table, dear: int) -> dict[str, Any]:
    """Run a table's command and keep what the page shows."""
    command = table.command(dear)
    file = RUNS / f"{table.env}-{digest(command)[:6]}.json"
    run([*command, "--json", str(file)])
    told = json.loads(file.read_text())
    kept = ("scores", "cross_entropy", "reward", "flops", "controller_flops", "seconds", "failure")
    rows = [
        {
            "name": Path(row["name"]).name,
            **{flag: row[flag] for flag in ("fixed", "reads_reward")},
            "episodes": [{key: episode[key] for key in kept} for episode in row["episodes"]],
        }
        for row in told["rows"]
    ]
    about = {key: told[key] for key in ("source", "data_fingerprint", "teachers", "metrics")}
    return {**about, "command": shlex.join(command), "rows": rows}


def baseline(env: str, tables: dict[str, Any]) -> str:
    """The best fixed control of the training contexts: as `benchmarks/game.py` found it on `select`, or, where that
    was not run, the fixed row with the best mean score over the tables here (which favours it).
    """
    spec = EnvSpec(env)
    labels = spec.family.labels
    for fact in facts(spec.id, spec.family.recipe.hash):
        if "best_single" in fact:
            parts = fact["best_single"].split("+")
            mixed = "static:" + ",".join(str(int(label in parts)) for label in labels)
            return {1: f"single:{parts[0]}", len(labels): "uniform"}.get(len(parts), mixed)
    means: dict[str, list[float]] = {}
    for table in tables.values():
        for row in table["rows"]:
            if row["fixed"]:
                scores = [episode["scores"][table["metrics"][0]] for episode in row["episodes"]]
                means.setdefault(row["name"], []).append(float(np.mean(scores)))
    return max(means, key=lambda name: float(np.mean(means[name])), default="")


def against(row: dict[str, Any], best: dict[str, Any] | None, values: Callable[[Any], float], rises: bool) -> str:
    """The paired difference to the baseline; bold where an adaptive controller is better beyond chance."""
    if best is None or row is best:
        return ""
    mine, other = ([values(episode) for episode in one["episodes"]] for one in (row, best))
    apart = paired(mine, other)
    better = apart.mean if rises else -apart.mean
    return f"**{apart.text()}**" if better > apart.half and not row["fixed"] else apart.text()


def lines_of(table: Table, found: dict[str, Any], base: str) -> Iterator[str]:
    """A table in Markdown; the last two columns are paired differences to the baseline."""
    metrics = found["metrics"]
    heads = ["controller", *(f"report {m}" for m in metrics), "cross-entropy", "reward", "GFLOP", "seconds"]
    heads += [f"{name} against {base}" for name in (metrics[0], "cross-entropy")]
    yield f"`{found['command']}`\n"
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    best = next((row for row in found["rows"] if row["name"] == base), None)
    for row in found["rows"]:
        episodes = row["episodes"]
        cells = [interval([e["scores"][m] for e in episodes]).text() for m in metrics]
        cells.append(interval([e["cross_entropy"] for e in episodes]).text())
        cells.append("" if row["reads_reward"] else interval([e["reward"] for e in episodes]).text())
        cells.append(f"{np.mean([e['flops'] + e['controller_flops'] for e in episodes]) / 1e9:.0f}")
        cells.append(f"{np.mean([e['seconds'] for e in episodes]):.1f}")
        cells.append(against(row, best, lambda e: float(e["scores"][metrics[0]]), True))
        cells.append(against(row, best, lambda e: float(e["cross_entropy"]), False))
        yield "| " + " | ".join([row["name"], *cells]) + " |"
    there = {row["name"] for row in found["rows"]}
    for name in (*table.page.learners, *table.page.others):
        if name not in there and not (table.updates and name in DEAR):
            yield f"| {name} | not run |" + " |" * (len(heads) - 2)


def written(wanted: list[Table], tables: dict[str, Any], arithmetic: str) -> str:
    """A page in Markdown."""
    env, baseline_of_page = wanted[0].env, wanted[0].page.baseline
    what = f"`{baseline_of_page}`" if baseline_of_page else "the best fixed control of the training contexts"
    lines = [f"# Controllers on {env}", "", arithmetic, ""]
    lines += [
        f"Mean ± half of the 95 % interval (Student's t) over {SEEDS} evaluation seeds, on `report`. A difference is "
        f"paired by seed, against {what}; that of an adaptive controller is "
        "bold where it is better and its interval excludes zero. Reward is of the env's kind, so it differs between "
        "controllers that need another one. GFLOP and seconds are one episode's, with what the controller spends. "
        f"Learners were trained once, for {EPISODES} episodes of the training contexts.",
        "",
    ]
    base = wanted[0].page.baseline or baseline(env, tables)
    for table in wanted:
        lines += [f"## Context {table.key}", ""]
        found = tables.get(table.key)
        lines += (
            [*lines_of(table, found, base), ""] if found else [f"not run: `{shlex.join(table.command(len(DEAR)))}`", ""]
        )
    return "\n".join(lines)


def longer(table: Table, tables: dict[str, Any], horizon: int) -> list[Table]:
    """The table of plain controllers in episodes as dear as the dearest one's, once that has been measured."""
    spent = {
        row["name"]: float(np.mean([e["flops"] + e["controller_flops"] for e in row["episodes"]]))
        for row in tables.get(table.key, {}).get("rows", [])
    }
    if not {table.page.dearest, "uniform"} <= spent.keys():
        return []
    updates = round(horizon * spent[table.page.dearest] / spent["uniform"])
    return [Table(table.task, table.page, table.context, updates)]


def seconds_of(env: str) -> float:
    """Seconds of one episode of the uniform control here, in a context that no table shows."""
    file = RUNS / "arithmetic.json"
    run(
        [
            "kd-gym",
            "evaluate",
            "uniform",
            "--env",
            env,
            "--seeds",
            "2",
            "--context",
            "noise-20-slow",
            "--json",
            str(file),
        ]
    )
    (row,) = json.loads(file.read_text())["rows"]
    return round(float(np.mean([episode["seconds"] for episode in row["episodes"]])), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("page", choices=list(PAGES))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tables"))
    args = parser.parse_args()
    page = PAGES[args.page]
    wanted = [Table(args.task, page, context) for context in page.contexts]
    env, learners = wanted[0].env, page.learners
    begin, place = time.perf_counter(), args.out / f"{args.task}-{args.page}.json"
    kept: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    if kept.get("meaning") != meaning(env):
        kept = {"meaning": meaning(env), "seconds": seconds_of(env), "tables": {}}
    tables, seconds = kept["tables"], kept["seconds"]

    rows = len(learners) + sum(DEAR.get(name, 1) for name in page.others)
    evaluated, trained = rows * len(wanted) * SEEDS, len(learners) * TRAINING
    minutes = (evaluated + trained) * seconds / 60
    arithmetic = (
        f"Arithmetic: {evaluated:.0f} evaluation episodes (dear controllers counted as the plain ones that they cost, "
        f"{rows:.0f} in all, x {len(wanted)} contexts x {SEEDS} seeds), {trained} of training, {seconds} s each with "
        f"{torch.get_num_threads()} thread(s): {minutes:.0f} minutes. What was not given time is marked 'not run'."
    )

    horizon = EnvSpec(env).family.recipe.process.horizon

    def fits(count: float) -> bool:
        return bool(count * seconds < args.minutes * 60 - (time.perf_counter() - begin))

    def log(what: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {what}", flush=True)
        write_json(place, kept)
        write_text(place.with_suffix(".md"), written(wanted, tables, arithmetic))

    dears = sum(name in DEAR for name in page.others)
    stages = [((), 0), (learners[:2], 0), *((learners, dear) for dear in range(dears + 1))]
    for taught, dear in stages:
        for agent in taught:
            if not finished(run_folder(env, agent)) and fits(TRAINING):
                run(training(env, agent))
                log(f"trained {agent}")
        for table in wanted:
            command = table.command(dear)
            there = shlex.split(tables.get(table.key, {}).get("command", ""))
            count = sum(DEAR.get(name, 1) for name in command[2 : command.index("--env")] if name not in there)
            count *= (table.updates or horizon) / horizon
            if there != command and fits(SEEDS * count):  # what does not learn was kept, and costs nothing
                tables[table.key] = made(table, dear)
                log(table.key)
        if page.dearest and len(wanted) == len(page.contexts):
            wanted += longer(wanted[0], tables, horizon)
    log("done")


if __name__ == "__main__":
    main()
