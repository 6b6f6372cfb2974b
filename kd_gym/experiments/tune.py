"""Search an agent's settings: Optuna proposes, workers train, and only `select` is looked at."""

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import torch

from kd_gym.agents.protocol import Controller
from kd_gym.errors import KDGymError
from kd_gym.experiments.benchmark import locked
from kd_gym.experiments.executors import Executor
from kd_gym.experiments.prepare import prepare
from kd_gym.experiments.runs import RunConfig, load_run
from kd_gym.experiments.score import play
from kd_gym.experiments.setup import SELECTION_SEEDS, EnvSpec, agent_for
from kd_gym.experiments.train import learn
from kd_gym.files import write_json

JUDGED = 5  # episodes on `select` that score a trained policy
FRESH = 1000  # their seeds lie so far behind those that chose the policy within its training
Settings = dict[str, Any]


@dataclass(frozen=True)
class Tuned:
    """What a search found: every setting tried with its score on `select`, the best first."""

    folder: Path
    metric: str
    tried: list[tuple[float, Settings]]
    default: float | None
    failures: list[str]


def propose(trial: Any, config: type) -> Settings:
    """Settings of a typed config, drawn by an Optuna trial.

    The type and the default of a field say where to look: words and switches among their values, counts and rates
    within a factor of four and five of the default, what lies between 0.5 and 1 (a discount) by its distance to 1, what
    is zero up to 0.1.
    """
    hints = get_type_hints(config)
    found: Settings = {}
    for f in dataclasses.fields(config):
        kind: Any = hints[f.name]
        default: Any = f.default
        if kind is bool:
            found[f.name] = trial.suggest_categorical(f.name, [False, True])
        elif get_args(kind):
            found[f.name] = trial.suggest_categorical(f.name, list(get_args(kind)))
        elif kind is int:
            found[f.name] = trial.suggest_int(f.name, max(1, default // 4), 4 * max(1, default), log=True)
        elif default == 0:
            found[f.name] = trial.suggest_float(f.name, 0.0, 0.1)
        elif 0.5 <= default < 1:
            away = 1 - default
            found[f.name] = round(1 - trial.suggest_float(f"1-{f.name}", away / 5, min(5 * away, 0.5), log=True), 9)
        else:
            found[f.name] = trial.suggest_float(f.name, default / 5, 5 * default, log=True)
    return found


def _defaults(config: type) -> Settings:
    """The default settings, as `propose` would have drawn them."""
    found: Settings = {}
    for f in dataclasses.fields(config):
        default: Any = f.default
        away = isinstance(default, float) and 0.5 <= default < 1
        found[f"1-{f.name}" if away else f.name] = 1 - default if away else default
    return found


def trial_job(config: RunConfig, folder: Path) -> float:
    """Train one agent and score its best policy on `select`, on seeds that had no part in choosing it."""
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    spec = config.spec
    config.write(folder)
    learn(config, config.controller(spec.make()), folder)
    policy, fitted = load_run(folder, spec)
    env = fitted.make()
    seeds = range(SELECTION_SEEDS + FRESH, SELECTION_SEEDS + FRESH + JUDGED)
    metric = env.lab.data.task.metrics[0]
    return float(np.mean([play(env, policy, seed, "select").scores[metric] for seed in seeds]))


def tune(
    env: str,
    agent: str,
    trials: int,
    run: Executor,
    out: Path,
    steps: int | None = None,
    num_envs: int = 4,
    seed: int = 0,
    data: str = "auto",
    device: str = "auto",
    backend: str = "full",
    env_config: Settings | None = None,
    say: Callable[[str], None] = print,
) -> Tuned:
    """Train an agent with `trials` different settings; the first one is its defaults.

    What is finished in `out` counts, so the same call goes on with an interrupted search. Each trial is one training
    from the same seed. `report` is never opened.

    Args:
        env: an id.
        agent: the name of one that learns.
        trials: how many trainings, those already there included.
        run: where they run.
        out: the folder of the search.
        steps: of each training, as for `train`.
    """
    try:
        import optuna
    except ImportError:
        raise KDGymError("tuning needs Optuna: pip install 'kd-gym[tune]'") from None
    cls, _, spec = agent_for(agent, EnvSpec(env, data, device, backend, dict(env_config or {})))  # type: ignore[arg-type]
    if not getattr(cls, "learns", False):
        raise KDGymError(f"{agent} does not learn: there is nothing to tune")
    if trials < 1:
        raise KDGymError(f"--trials must be at least 1, not {trials}")
    settings: type = getattr(cls, "Config", Controller.Config)
    out = out.resolve()
    total = steps or 100 * spec.family.decisions
    with locked(out):
        prepare(spec)
        metric = spec.lab().data.task.metrics[0]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        file = optuna.storages.journal.JournalFileBackend(str(out / "trials.log"))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(file),
            study_name=f"{spec.id} {agent}",
            direction="maximize",
            load_if_exists=True,
        )
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), constant_liar=True)
        states = optuna.trial.TrialState
        finished = states.COMPLETE
        asked = {
            "steps": total, "num_envs": num_envs, "seed": seed, "data": data, "backend": backend, "env": spec.config
        }  # fmt: skip
        if study.user_attrs.get("asked", asked) != asked:
            raise KDGymError(f"{out} holds a search with {study.user_attrs['asked']}, not {asked}; give another --out")
        study.set_user_attr("asked", asked)
        for trial in study.get_trials(states=(states.RUNNING,)):  # of a run that was killed
            study.tell(trial.number, state=states.FAIL)
        scored = [trial.user_attrs["settings"] for trial in study.get_trials(states=(finished,))]
        defaults = asdict(settings())
        if defaults not in scored and not study.get_trials(states=(states.WAITING,)):
            study.enqueue_trial(_defaults(settings))
        failures: list[str] = []

        def start(threads: ThreadPoolExecutor) -> tuple[Future[float], Any]:
            trial = study.ask()
            chosen = propose(trial, settings)
            trial.set_user_attr("settings", chosen)
            config = RunConfig(
                *(spec.id, agent, total, num_envs, seed, data, device, backend, 1, spec.config, chosen),
            )
            return threads.submit(run, trial_job, config, out / f"trial-{trial.number}"), trial

        with ThreadPoolExecutor(run.workers) as threads:
            going: dict[Future[float], Any] = {}
            try:
                while True:
                    done = len(study.get_trials(states=(finished,)))
                    while len(going) < min(run.workers, trials - done) and len(failures) < trials:
                        future, trial = start(threads)
                        going[future] = trial
                    if not going:
                        break
                    for future in wait(going, return_when=FIRST_COMPLETED).done:
                        trial = going.pop(future)
                        told = trial.user_attrs["settings"]
                        try:
                            score = future.result()
                        except Exception as error:
                            failures.append(f"trial {trial.number} ({told}): {type(error).__name__}: {error}")
                            study.tell(trial, state=optuna.trial.TrialState.FAIL)
                            say(f"failed: {failures[-1]}")
                            continue
                        study.tell(trial, score)
                        done += 1
                        say(f"[{done}/{trials}] select {metric} {score:.4f} with {told}")
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                run.close()
                raise
        kept = study.get_trials(states=(finished,))
        tried = [(float(trial.value or 0), trial.user_attrs["settings"]) for trial in kept]
        default = next((score for score, told in tried if told == defaults), None)
        found = Tuned(out, metric, sorted(tried, key=lambda one: -one[0]), default, failures)
        write_json(
            out / "result.json",
            {"env": spec.id, "agent": agent, "steps": total, "metric": f"select {metric}", "default": default,
             "tried": [{"score": score, "settings": told} for score, told in found.tried]},
        )  # fmt: skip
        return found
