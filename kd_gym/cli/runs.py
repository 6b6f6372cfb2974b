"""The commands that distil: train, evaluate, distill."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_gym.cli.options import (
    agent_settings,
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


def train_command(arguments: Sequence[str]) -> int:
    """Train an agent in an env and score it beside the fixed controls."""

    from kd_gym.experiments.runs import read_config
    from kd_gym.experiments.setup import EnvSpec
    from kd_gym.experiments.tables import comparison_table
    from kd_gym.experiments.train import resume, train

    env, agent, folder = peek(arguments, "--env", "--agent", "--resume")
    console = make_console()
    if folder is not None:
        if list(arguments) not in (["--resume", folder], [f"--resume={folder}"]):
            raise KDGymError("--resume RUN goes on as the run was started; it takes no other option")
        spec = read_config(Path(folder)).spec
        announce(spec.lab(), spec, console)
        with progress_bars(console) as progress:
            result = resume(Path(folder), progress)
    else:
        env_config, agent_config = env_settings(env), agent_settings(agent)
        fields = [
            ("env", option(str, "an env id, with or without -v0"), dataclasses.MISSING),
            ("agent", option(str, "an agent's name, or module:Class"), dataclasses.MISSING),
            ("steps", option(int | None, "decisions, all students together; default: 100 episodes"), None),
            ("num_envs", option(int, "students trained at the same time"), 4),
            ("seed", option(int, "of the agent and of all episodes"), 0),
            ("out", option(Path | None, "the run directory; default: a new one under runs/"), None),
            ("eval_seeds", option(int, "episodes of each controller in the final table"), 3),
            ("resume", option(Path | None, "go on with this interrupted run instead"), None),
            *common(env_config),
            ("agent_config", option(agent_config, "the agent's own settings"), agent_config()),
        ]
        parsed = parse(command_options("Train", fields, train_command.__doc__ or ""), arguments, "train")
        spec = EnvSpec(parsed.env, parsed.data, parsed.device, parsed.backend, changed(parsed.env_config))
        announce(spec.lab(), spec, console)
        with progress_bars(console) as progress:
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
                changed(parsed.agent_config),
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


def evaluate_command(arguments: Sequence[str]) -> int:
    """Score controllers and trained runs on the same seeds of an env."""
    import tyro

    from kd_gym.envs.contexts import context_set
    from kd_gym.experiments.evaluate import check_controller, evaluate, write_comparison
    from kd_gym.experiments.setup import EnvSpec
    from kd_gym.experiments.tables import comparison_table

    (env,) = peek(arguments, "--env")

    fields = [
        ("controllers", tyro.conf.Positional[tuple[str, ...]], dataclasses.MISSING),
        ("env", option(str, "an env id, with or without -v0"), dataclasses.MISSING),
        ("seeds", option(int, "episodes of each controller"), 5),
        ("context", option(str, "default, train, held-out, or one by name"), "default"),
        ("json", option(Path | None, "write everything to this file too"), None),
        (
            "transfer",
            option(tuple[str, ...] | None, "score runs on these ENV:KEY=VALUE,... instead; none: a default list"),
            None,
        ),
        ("records", option(Path | None, "a folder for a record of each episode; default: runs keep their own"), None),
        *common(env_settings(env)),
    ]
    parsed = parse(command_options("Evaluate", fields, evaluate_command.__doc__ or ""), arguments, "evaluate")
    if not parsed.controllers:
        raise KDGymError("name at least one controller or run directory")
    config = {"context": parsed.context, **changed(parsed.env_config)}
    context_set(config["context"])
    spec = EnvSpec(parsed.env, parsed.data, parsed.device, parsed.backend, config)
    if parsed.transfer is not None:
        return _transfer(parsed, spec)
    console = make_console()
    for name in parsed.controllers:
        check_controller(name, spec)
    announce(spec.lab(), spec, console)
    with progress_bars(console) as progress:
        comparison = evaluate(parsed.controllers, spec, parsed.seeds, progress, parsed.records)
    console.print(comparison_table(comparison))
    for row in comparison.rows:
        if sentence := comparison.verdict(row.name):
            console.print(sentence, highlight=False)
    if parsed.json:
        write_comparison(comparison, parsed.json)
    return 0


def _transfer(parsed: Any, spec: Any) -> int:
    from kd_gym.experiments.tables import transfer_table
    from kd_gym.experiments.transfer import transfer

    console = make_console()
    with progress_bars(console) as progress:
        found = transfer(parsed.controllers, spec, parsed.transfer, parsed.seeds, progress)
    console.print(transfer_table(found, parsed.seeds))
    for misfit in found.misfits:
        console.print(misfit, highlight=False)
    return 0


def distill_command(arguments: Sequence[str]) -> int:
    """Distil one student under a frozen controller, and write it as a Hugging Face checkpoint with a model card."""
    from kd_gym.experiments.distill import distill
    from kd_gym.experiments.evaluate import check_controller
    from kd_gym.experiments.setup import EnvSpec
    from kd_gym.experiments.tables import distilled_table

    (env,) = peek(arguments, "--env")
    fields = [
        ("env", option(str, "an env id, with or without -v0"), dataclasses.MISSING),
        ("controller", option(str, "a controller's name, or a run directory"), dataclasses.MISSING),
        ("out", option(Path, "the folder of the checkpoint"), dataclasses.MISSING),
        ("budget", option(int | None, "updates; default: three epochs"), None),
        ("seed", option(int, "of the student and its data order"), 0),
        ("select", option(bool, "keep the student that did best on select, not the last one"), False),
        ("onnx", option(bool, "write model.onnx too"), False),
        *common(env_settings(env)),
    ]
    parsed = parse(command_options("Distill", fields, distill_command.__doc__ or ""), arguments, "distill")
    spec = EnvSpec(parsed.env, parsed.data, parsed.device, parsed.backend, changed(parsed.env_config))
    check_controller(parsed.controller, spec)
    console = make_console()
    announce(spec.lab(), spec, console)
    with progress_bars(console) as progress:
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
