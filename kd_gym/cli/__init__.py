"""The command line: parse, call one function, print.

`--env` and `--agent` are read first, because they say which `--env-config.*` and `--agent-config.*` there are. A
command's module is imported when it is called, so that `kd-gym --help` answers at once.
"""

import difflib
import os
import sys
from collections.abc import Sequence

from kd_gym.errors import KDGymError
from kd_gym.plugins import load

COMMANDS = {
    "train": ("runs", "train an agent and score it beside the fixed controls"),
    "evaluate": ("runs", "score controllers and trained runs in one paired table"),
    "distill": ("runs", "distil one student at full length and write it as a Hugging Face checkpoint"),
    "benchmark": ("evidence", "run a suite of trials, here or on a Ray cluster, and write its tables"),
    "validate": ("evidence", "repeat recorded episodes and compare"),
    "report": ("evidence", "one HTML page with figures of a run or a benchmark"),
    "tune": ("evidence", "search an agent's settings, on the select split only"),
    "prepare": ("catalogue", "fetch data, tune and store teachers ahead of time"),
    "doctor": ("catalogue", "what this machine has, and with --fit ID how many students fit on it"),
    "list": ("catalogue", "envs, agents, tasks, knowledge types or suites"),
    "describe": ("catalogue", "the page of an env, agent, task or knowledge type"),
}


def usage() -> str:
    """What `kd-gym` alone prints."""
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    more = "`kd-gym COMMAND --help` says more. Start with: kd-gym train --env KnowledgeSelect-SST2 --agent ppo"
    return "\n".join(["usage: kd-gym COMMAND ...", "", *lines, "", more, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: exit code 0, or 2 with one line for a mistake that the user can mend."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        sys.exit(0)
    if given[0] == "--version":
        from kd_gym import __version__

        sys.stdout.write(f"kd-gym {__version__}\n")
        sys.exit(0)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        if given[0] not in COMMANDS:
            close = difflib.get_close_matches(given[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(COMMANDS)}"
            raise KDGymError(f"unknown command {given[0]!r}: {hint}")
        command = load(f"kd_gym.cli.{COMMANDS[given[0]][0]}:{given[0]}_command")
        sys.exit(command(given[1:]))
    except KDGymError as error:
        sys.stderr.write(f"kd-gym: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        told = {
            "train": "; `kd-gym train --resume RUN` goes on from the last checkpoint",
            "benchmark": "; the same command with --resume goes on",
        }
        more = told.get(given[0], "")
        sys.stderr.write(f"kd-gym: interrupted{more}\n")
        sys.exit(130)
