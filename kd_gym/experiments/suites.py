"""Benchmark suites: which controllers are held against each other on which ids, contexts, budgets and seeds.

A suite is one YAML file (see `benchmarks/suites/`): some settings, stages of trials, and the claims that its table is
to answer. Everything in it is checked before any trial starts.
"""

import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from kd_gym.agents.protocol import agent_class
from kd_gym.envs.contexts import context_set
from kd_gym.envs.recipes import Backend
from kd_gym.errors import KDGymError
from kd_gym.experiments.evaluate import WITH_REWARD, check_controller
from kd_gym.experiments.setup import EVALUATION_SEEDS, EnvSpec
from kd_gym.files import digest, file_words
from kd_gym.plugins import nearest

SUITES = Path(__file__).parents[1] / "suites"


@dataclass(frozen=True)
class Training:
    """How a suite trains agents that learn, once for each id, before they are scored.

    Attributes:
        episodes: of all students together.
        num_envs: students at the same time.
        context: which contexts they learn in.
        seed: of the first agent and its episodes.
        agents: how many are trained of each kind, with seeds of their own; evaluation seeds take them in turn. One
            says nothing about another training of the same kind.
    """

    episodes: int = 40
    num_envs: int = 4
    context: str = "train"
    seed: int = 0
    agents: int = 1


@dataclass(frozen=True)
class Stage:
    """Trials that belong together: every id with every controller, context, budget and seed.

    Attributes:
        ids: env ids, with or without `-v0`.
        controllers: names; agents that learn are trained first.
        contexts: `default`, or published contexts by name.
        budgets: updates of an episode; `own` is the id's, `cost of NAME` as many as cost what an episode of NAME does.
        seeds: evaluation seeds, where not the suite's.
    """

    ids: tuple[str, ...]
    controllers: tuple[str, ...]
    contexts: tuple[str, ...] = ("default",)
    budgets: tuple[int | str, ...] = ("own",)
    seeds: int | None = None


@dataclass(frozen=True)
class Claim:
    """That a method scores higher than others, as a paper says; every id of the family answers it."""

    text: str
    family: str
    method: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """A whole suite.

    Attributes:
        about: what it is for, in words.
        stages: by name, in the order in which they run.
        seeds: evaluation seeds of every cell; the seed is the unit of all statistics.
        threads: of one trial: bits depend on it.
        backend: `full`, or `tiny` for random models and generated text.
        data: where rows come from.
        baseline: what differences are taken against.
    """

    about: str
    stages: dict[str, Stage]
    seeds: int = 5
    threads: int = 1
    backend: Backend = "full"
    data: str = "auto"
    baseline: str = "uniform"
    training: Training = field(default_factory=Training)
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One evaluated episode of a suite: an id, a controller, a context, a budget and a seed."""

    env: str
    controller: str
    context: str
    budget: int | str
    seed: int

    @property
    def key(self) -> str:
        """Its name in a folder of results."""
        words = file_words(self.controller)
        told = [self.env, words, self.context, str(self.budget).replace(" ", "-"), str(self.seed - EVALUATION_SEEDS)]
        return ".".join([*told, digest(vars(self))[:6]])

    @property
    def learns(self) -> bool:
        """Whether the controller has to be trained first."""
        return bool(getattr(agent_class(self.controller)[0], "learns", False))


def trials_of(suite: Suite, stage: str) -> Iterator[Trial]:
    """All trials of a stage, seed by seed, so that an interrupted one has every controller at some seeds."""
    told = suite.stages[stage]
    for seed in range(EVALUATION_SEEDS, EVALUATION_SEEDS + (told.seeds or suite.seeds)):
        for env in told.ids:
            for context in told.contexts:
                for budget in told.budgets:
                    for controller in told.controllers:
                        if budget == f"cost of {controller}":
                            continue  # that is its own one
                        yield Trial(EnvSpec(env).id, controller, context, budget, seed)


def spec_of(suite: Suite, env: str, **config: Any) -> EnvSpec:
    """An env of a suite."""
    return EnvSpec(env, suite.data, "auto", suite.backend, config)


# ---------------------------------------------------------------------- reading


def suite_names() -> list[str]:
    """The suites that come with kd-gym."""
    return sorted(file.stem for file in SUITES.glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """A suite by name, or by the path of its YAML file; checked.

    Raises:
        KDGymError: an unknown suite, id, controller, context or key (with the nearest valid one), or a wrong type.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
    if not file.is_file():
        raise (
            KDGymError(f"no suite file {file}")
            if name.endswith((".yaml", ".yml"))
            else nearest("suite", name, suite_names())
        )
    try:
        told = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise KDGymError(f"{file.name} is no YAML: {' '.join(str(error).split())}") from None
    suite: Suite = _typed(Suite, told, file.name)
    check_suite(suite, file.name)
    return suite


def check_suite(suite: Suite, where: str) -> None:
    """Raise `KDGymError` for what no trial could be made of."""
    for name, stage in suite.stages.items():
        for env in stage.ids:
            spec = spec_of(suite, env)
            spec.id  # noqa: B018 (raises for an unknown id)
            for controller in stage.controllers:
                cls, _ = agent_class(controller)
                spec.for_agent(cls) if getattr(cls, "learns", False) else check_controller(controller, spec)
        for context in stage.contexts:
            context_set(context)
        for budget in stage.budgets:
            reference = str(budget).removeprefix("cost of ")
            if isinstance(budget, int):
                good = budget > 0
            else:
                good = budget == "own" or (reference in stage.controllers and "own" in stage.budgets)
            if not good:
                raise KDGymError(
                    f"{where}, stages.{name}.budgets: {budget!r} is no number of updates, `own`, or beside `own` "
                    "`cost of` one of the stage's controllers"
                )
        if not (stage.ids and stage.controllers and stage.contexts and stage.budgets):
            raise KDGymError(f"{where}, stages.{name} is empty: it needs ids, controllers, contexts and budgets")
        if (stage.seeds or suite.seeds) < 1:
            raise KDGymError(f"{where}: at least one seed is needed")
    _check_readers(suite, where)
    context_set(suite.training.context)
    counts = {"threads": suite.threads, **{n: getattr(suite.training, n) for n in ("episodes", "num_envs", "agents")}}
    for name, count in counts.items():
        if count < 1:
            raise KDGymError(f"{where}: {name} must be at least 1, not {count}")
    controllers = {c for stage in suite.stages.values() for c in stage.controllers}
    if suite.baseline not in controllers:
        raise nearest(f"controller as the baseline of {where}:", suite.baseline, controllers)
    for claim in suite.claims:
        ids = [s for s in suite.stages.values() if any(env.partition("-")[0] == claim.family for env in s.ids)]
        if not ids:
            families = {env.partition("-")[0] for stage in suite.stages.values() for env in stage.ids}
            raise nearest(f"family in the claims of {where}:", claim.family, families)
        for wanted in (claim.method, *claim.others):
            if not any(wanted in stage.controllers for stage in ids):
                raise nearest(f"controller in the claims of {where}:", wanted, {c for s in ids for c in s.controllers})


def _check_readers(suite: Suite, where: str) -> None:
    """Raise unless `uniform+reward` stands in every table with a controller that learns from the labels of `reward`."""
    tables: dict[tuple[str, str, int | str], set[str]] = {}
    for name in suite.stages:
        for trial in trials_of(suite, name):
            tables.setdefault((trial.env, trial.context, trial.budget), set()).add(trial.controller)
    for place, names in tables.items():
        readers = sorted(name for name in names if getattr(agent_class(name)[0], "reads_reward", False))
        if readers and WITH_REWARD not in names:
            told = ", ".join(map(str, place))
            raise KDGymError(f"{where}: {readers[0]} learns from the labels of `reward`: add {WITH_REWARD} to {told}")


def _typed(kind: Any, value: Any, where: str) -> Any:
    """A value out of YAML as a type says; `KDGymError` names the place of what does not fit."""
    origin, options = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise KDGymError(f"{where} should be a mapping, not {value!r}")
        hints, known = get_type_hints(kind), {f.name: f for f in fields(kind)}
        for key in value:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(known)}"
                raise KDGymError(f"{where}: unknown key {key!r}: {hint}")
        for name, f in known.items():
            if name not in value and f.default is MISSING and f.default_factory is MISSING:
                raise KDGymError(f"{where}: {name!r} is missing")
        return kind(**{key: _typed(hints[key], item, f"{where}, {key}") for key, item in value.items()})
    if origin is dict:
        if not isinstance(value, Mapping) or not value:
            raise KDGymError(f"{where} should be a mapping with names, not {value!r}")
        return {str(key): _typed(options[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise KDGymError(f"{where} should be a list, not {value!r}")
        return tuple(_typed(options[0], item, where) for item in value)
    accepted = options if origin in (Union, types.UnionType) or options else (kind,)
    for one in accepted:
        if value == one or (isinstance(one, type) and type(value) is one):
            return value
    names = " or ".join(one.__name__ if isinstance(one, type) else repr(one) for one in accepted)
    raise KDGymError(f"{where} should be {names}, not {value!r}")
