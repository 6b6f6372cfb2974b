"""What there is, and what an id, a task, an agent or a knowledge type means."""

import inspect
from typing import Any

import gymnasium as gym

from kd_gym import ENV_IDS
from kd_gym.agents.protocol import AGENTS
from kd_gym.backend.knowledge import KNOWLEDGE
from kd_gym.backend.teacher import TeacherSpec
from kd_gym.envs import observation
from kd_gym.envs.contexts import HELD_OUT, TRAIN
from kd_gym.errors import KDGymError
from kd_gym.experiments.facts import facts
from kd_gym.experiments.setup import EnvSpec, resolve_id
from kd_gym.experiments.suites import load_suite, suite_names
from kd_gym.plugins import load, nearest
from kd_gym.tasks.task import TASKS

KINDS = ("envs", "agents", "tasks", "knowledge", "suites")


def names(kind: str) -> list[tuple[str, str]]:
    """All names of a kind, each with a line on it."""
    if kind == "envs":
        return [(name, _env_line(name)) for name in ENV_IDS]
    if kind == "agents":
        return [(name, _first_line(AGENTS.get(name))) for name in AGENTS.names()]
    if kind == "tasks":
        return [(name, _task_line(name)) for name in TASKS.names()]
    if kind == "knowledge":
        return [(name, KNOWLEDGE.get(name).summary) for name in KNOWLEDGE.names()]
    if kind == "suites":
        return [(name, load_suite(name).about) for name in suite_names()]
    raise nearest("kind", kind, KINDS)


def describe(name: str) -> str:
    """The page of an env id, an agent, a task or a knowledge type, in Markdown."""
    try:
        return _env_page(resolve_id(name))
    except KDGymError as unknown:
        for registry in (AGENTS, TASKS, KNOWLEDGE):
            if name in registry.names():
                return _thing_page(name, registry.get(name))
        every = [*ENV_IDS, *AGENTS.names(), *TASKS.names(), *KNOWLEDGE.names()]
        raise nearest("name", name, every) from unknown


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _env_line(name: str) -> str:
    family = EnvSpec(name).family
    recipe = family.recipe
    task = recipe.task or "own data"
    return (
        f"{task}, student {recipe.layers} x {recipe.hidden}, {family.decisions} decisions of {family.updates} updates"
    )


def _task_line(name: str) -> str:
    task = TASKS.get(name)
    return f"{len(task.labels)} classes, {' and '.join(task.text)}; scored by {', '.join(task.metrics)}"


def _env_page(env_id: str) -> str:
    family = EnvSpec(env_id).family
    recipe = family.recipe
    cls = load(str(gym.spec(env_id).entry_point))
    table = observation.table_text(
        observation.features(family.labels, recipe.process.knowledge, recipe.teacher_names())
    )
    lines = [f"# {env_id}", "", (inspect.getdoc(cls) or "").replace("{observations}", table), "", "## Recipe"]
    process = recipe.process
    lines += [
        f"- {_env_line(env_id)}; batch {process.batch}, "
        f"peak learning rate {process.learning_rate:g}, tau {process.tau:g}",
        *(f"- teacher {_teacher_line(spec)}" for spec in recipe.teacher_set()),
        f"- reward measured on {recipe.reward_rows} rows; recipe hash {recipe.hash}",
        "",
        "## Contexts",
        "| name | set | label noise | train share | teacher | learning rate |",
        "|---|---|---|---|---|---|",
    ]
    for kind, contexts in (("train", TRAIN), ("held-out", HELD_OUT)):
        for c in contexts:
            lines.append(f"| {c.name} | {kind} | {c.label_noise:g} | {c.train_share:g} | {c.teachers} | x {c.rate:g} |")
    known = facts(env_id, recipe.hash)
    lines += ["", "## Accuracy of the teachers on `select`", *_accuracies(env_id, known)]
    lines += ["", "## Spread and room", *_spread_and_room(env_id, known)]
    return "\n".join(lines)


def _teacher_line(spec: TeacherSpec) -> str:
    """What a teacher is, in words."""
    parts = [
        f"`{spec.name}`: {spec.checkpoint}",
        f"its lowest {spec.layers} layers" if spec.layers else "",
        f"on {spec.share:.0%} of train" if spec.share < 1 else "",
        f"on texts of {spec.domain}" if spec.domain else "",
        f"{spec.label_noise:.0%} of the labels{' of long texts' if spec.noise_on == 'long' else ''} flipped"
        if spec.label_noise
        else "",
        f"at most {spec.epochs:g} epochs and {spec.updates} updates",
    ]
    return ", ".join(filter(None, parts))


def _accuracies(env_id: str, known: list[dict[str, Any]]) -> list[str]:
    """A line for each source of data."""
    lines = []
    for fact in known:
        if "teachers" in fact:
            scores = {name: scores["select"] for name, scores in fact["teachers"].items()}
            said = ", ".join(f"{name} {next(iter(found.values())):.3f}" for name, found in scores.items())
            lines.append(f"- {fact['source']}: {said}")
    return lines or [f"Not measured for this recipe; `kd-gym prepare --env {env_id}` does it."]


def _spread_and_room(env_id: str, known: list[dict[str, Any]]) -> list[str]:
    """A line for each source of data."""
    lines = [
        f"- {fact['source']}, {fact['seeds']} seeds, in seed spreads of cross-entropy on `select` "
        f"({fact['seed_spread']:.4f}): spread {fact['spread']['default']:.1f} by default and "
        f"{fact['spread']['noise-30']:.1f} with 30 % label noise; room {fact['room']:.1f} over the training "
        f"contexts (best single fixed control: {fact['best_single']})."
        for fact in known
        if "room" in fact
    ]
    return lines or [f"Not measured for this recipe; measure it with: python benchmarks/game.py {env_id}"]


def _thing_page(name: str, thing: Any) -> str:
    if not inspect.isclass(thing):
        fields = vars(thing)
        about = [f"- {key}: {value}" for key, value in fields.items() if not callable(value)]
        return "\n".join([f"# {name}", "", *about])
    lines = [f"# {name}", "", inspect.getdoc(thing) or ""]
    actions = getattr(thing, "actions", ())
    lines += ["", f"Action kinds, the preferred one first: {', '.join(actions)}."]
    if options := getattr(thing, "options", {}):
        lines += ["", f"What its env has to have: {', '.join(f'{key}={value}' for key, value in options.items())}."]
    fields = getattr(getattr(thing, "Config", None), "__dataclass_fields__", {})
    if fields:
        form = "--agent-config.KEY" if getattr(thing, "learns", False) else f"{name}:KEY=VALUE,..."
        lines += ["", f"Settings (`{form}`):"]
        lines += [f"- {key} = {value.default}" for key, value in fields.items()]
    return "\n".join(lines)
