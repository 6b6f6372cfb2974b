"""Tables of controllers on one family of a task: score, reward and cost, in the default and in noisy contexts.

    python benchmarks/tables.py SST2 KnowledgeSelect [--minutes 25] [--out benchmarks/results/tables]

Every table is one `kd-gym evaluate` command, which stands above it: at first of the controllers that need no training,
then with the learners too (trained once each, seed 0, on the training contexts), last with the dear oracle. What is
done is not done again, so the script goes on where it stopped, and what does not fit into the minutes is marked 'not
run'. The page states its arithmetic first. Runs lie under `runs/tables`.
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

CONTEXTS = ("default", "noise-40", "wrong-teacher")
SEEDS = 5
EPISODES = 40  # of one training
TRAINING = EPISODES + 12  # with the looks at `select` and the last table
RUNS = Path("runs/tables")

LEARNERS = {
    "KnowledgeSelect": ("ppo", "aks", "dqn", "a2c", "sac", "td3"),
    "TeacherWeight": ("ppo", "rlkd"),
    "SamplePriority": ("ppo",),
    "JointControl": ("ppo",),
}
OTHERS = {
    "KnowledgeSelect": (
        *("uniform", "random", "single:hard", "single:response", "static:1,0,1,0", "schedule:anneal"),
        *("dynamic-kd", "exp3", "linucb", "greedy"),
    ),
    "TeacherWeight": (
        *("uniform", "random", "single:full", "single:shallow", "best-single", "weighted-ensemble"),
        *("ca-mkd", "govern", "dynamic-kd", "exp3", "linucb", "greedy"),
    ),
    "SamplePriority": ("uniform", "random", "curriculum", "curriculum:back", "dynamic-kd"),
    "JointControl": ("uniform", "random"),
}
DEAR = {"greedy": 10.0}  # how many plain episodes one of these costs


@dataclass(frozen=True)
class Table:
    """One table of a page."""

    task: str
    family: str
    context: str

    @property
    def env(self) -> str:
        """The id."""
        return f"{self.family}-{self.task}"

    def command(self, dear: bool) -> list[str]:
        """What makes it, with the learners that are trained so far."""
        runs = [str(run) for agent in LEARNERS[self.family] if finished(run := run_folder(self.env, agent))]
        names = [name for name in OTHERS[self.family] if dear or name not in DEAR]
        return [
            *("kd-gym", "evaluate", *runs, *names, "--env", self.env),
            *("--context", self.context, "--seeds", str(SEEDS)),
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


def made(table: Table, dear: bool) -> dict[str, Any]:
    """Run a table's command and keep what the page shows."""
    command, file = table.command(dear), RUNS / f"{table.env}-{table.context}.json"
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
    for name in (*LEARNERS[table.family], *OTHERS[table.family]):
        if name not in there:
            yield f"| {name} | not run |" + " |" * (len(heads) - 2)


def page(env: str, tables: dict[str, Any], arithmetic: str) -> str:
    """The page of an id."""
    lines = [f"# Controllers on {env}", "", arithmetic, ""]
    lines += [
        f"Mean ± half of the 95 % interval (Student's t) over {SEEDS} evaluation seeds, on `report`. A difference is "
        "paired by seed, against the best fixed control of the training contexts; that of an adaptive controller is "
        "bold where it is better and its interval excludes zero. Reward is of the env's kind, so it differs between "
        "controllers that need another one. GFLOP and seconds are one episode's, with what the controller spends. "
        f"Learners were trained once, for {EPISODES} episodes of the training contexts.",
        "",
    ]
    base = baseline(env, tables)
    for table in tables_of(env):
        lines += [f"## Context {table.context}", ""]
        found = tables.get(table.context)
        lines += [*lines_of(table, found, base), ""] if found else [f"not run: `{shlex.join(table.command(True))}`", ""]
    return "\n".join(lines)


def tables_of(env: str) -> list[Table]:
    """The tables of a page, in the order in which they are made."""
    family, _, task = env.partition("-")
    return [Table(task, family, context) for context in CONTEXTS]


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
    parser.add_argument("family", choices=list(LEARNERS))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tables"))
    args = parser.parse_args()
    env, learners, others = f"{args.family}-{args.task}", LEARNERS[args.family], OTHERS[args.family]
    begin, place = time.perf_counter(), args.out / f"{args.task}-{args.family}.json"
    kept: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    if kept.get("meaning") != meaning(env):
        kept = {"meaning": meaning(env), "seconds": seconds_of(env), "tables": {}}
    tables, seconds = kept["tables"], kept["seconds"]

    rows = len(learners) + sum(DEAR.get(name, 1) for name in others)
    evaluated, trained = rows * len(CONTEXTS) * SEEDS, len(learners) * TRAINING
    minutes = (evaluated + trained) * seconds / 60
    arithmetic = (
        f"Arithmetic: {evaluated:.0f} evaluation episodes ({rows:.0f} rows, the oracle as {DEAR['greedy']:.0f}, "
        f"x {len(CONTEXTS)} contexts x {SEEDS} seeds), {trained} of training, {seconds} s each with "
        f"{torch.get_num_threads()} thread(s): {minutes:.0f} minutes. What was not given time is marked 'not run'."
    )

    def fits(count: float) -> bool:
        return bool(count * seconds < args.minutes * 60 - (time.perf_counter() - begin))

    def log(what: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {what}", flush=True)
        write_json(place, kept)
        write_text(place.with_suffix(".md"), page(env, tables, arithmetic))

    for wanted, dear in (((), False), (learners[:2], False), (learners, False), (learners, True)):
        for agent in wanted:
            if not finished(run_folder(env, agent)) and fits(TRAINING):
                run(training(env, agent))
                log(f"trained {agent}")
        for table in tables_of(env):
            again = table.context in tables  # what did not learn is kept
            count = len(learners) if again else sum(DEAR.get(name, 1) for name in others if dear or name not in DEAR)
            changed = tables.get(table.context, {}).get("command") != shlex.join(table.command(dear))
            if changed and fits(SEEDS * (count + (DEAR["greedy"] if dear and "greedy" in others else 0))):
                tables[table.context] = made(table, dear)
                log(table.context)
    log("done")


if __name__ == "__main__":
    main()
