"""Env steps beside worker processes and a naive env; what an env adds to a step; where the time of agents goes.

    python benchmarks/speed/envs.py [--envs 1 4] [--repeats 3] [--updates 5] [--device cpu] [--out FILE]

What `--updates` counts here are env steps, each of 10 updates of every student and an evaluation. Three parts:

1. Steps of `KnowledgeSelect-SST2` with its real recipe, for each N of `--envs`: `make_vec(num_envs=N)`, and SB3's
   `SubprocVecEnv` and Gymnasium's `AsyncVectorEnv` over N single envs. Workers share the cores: each has cores / N
   threads, at least one. All autoreset in the same step, and go through the same rows. Beside them a naive env, alone
   on all cores (see `naive_env.py`).
2. What observation, reward and info add to a step, and what its evaluation takes, in `KnowledgeSelect` and in
   `TeacherWeight` at instance granularity (a decision for each of 32 samples and 4 teachers).
3. PPO, AKS and RL-KD while they learn, with as many students as the largest N: the share of a round's time that goes
   to the students (their starts and evaluations apart), to the policy and the agent around it, and to the rest. A
   round is as many episodes as there are students; one goes before the one that is measured.
"""

import functools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from bench import (
    Contender,
    Run,
    about,
    alternate,
    architecture,
    bars,
    device_of,
    parser,
    random_start,
    random_store,
    save,
    table,
    verdict,
)
from kd_gym.envs.episodes import EpisodeConfig, Episodes
from kd_gym.envs.faces import DistillationEnv
from kd_gym.envs.family import Family
from kd_gym.envs.knowledge_select import KnowledgeSelect
from kd_gym.envs.lab import Lab, Teacher
from kd_gym.envs.recipes import Origin
from kd_gym.envs.teacher_weight import TeacherWeight
from kd_gym.experiments.setup import EnvSpec, agent_for
from kd_gym.tasks.data import TaskData
from naive_env import NaiveEnv

ENV = "KnowledgeSelect-SST2"
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": (ENV, {}),
    "aks": (ENV, {"learning_starts": 0}),  # as it is after its first random decisions
    "rlkd": ("TeacherWeight-SST2", {}),
}
ADDED, EVALUATED = 0.05, 0.25  # parts of a step at most


# ---------------------------------------------------------------------- steps


def single(threads: int, spec: EnvSpec) -> DistillationEnv:
    """One student in a worker that has so many threads."""
    torch.set_num_threads(threads)
    return spec.make()


def stepping(env: gym.vector.VectorEnv | VecEnv | NaiveEnv) -> Run:
    """Steps of an env under random actions; a vector env starts ended episodes anew by itself."""
    env.action_space.seed(0)
    if isinstance(env, VecEnv):
        env.seed(0)
        env.reset()
    else:
        env.reset(seed=0)

    def run(first: int, count: int) -> None:
        for _ in range(count):
            if isinstance(env, VecEnv):
                env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
                continue
            over = env.step(env.action_space.sample())[2]
            if isinstance(env, NaiveEnv) and over:
                env.reset()

    return run


def steppers(n: int, spec: EnvSpec) -> tuple[dict[str, Contender], Callable[[], None]]:
    """The three that have N students, and how to end their workers."""
    cores = torch.get_num_threads()
    each = [functools.partial(single, max(1, cores // n), spec)] * n
    ours = spec.make_vec(n)
    subproc = SubprocVecEnv(each, start_method="spawn")  # a fork would inherit torch's threads, or a GPU's context
    async_ = AsyncVectorEnv(each, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP)
    torch.set_num_threads(cores)  # AsyncVectorEnv makes one env here too, to see its spaces
    envs = {"kd-gym": ours, "SubprocVecEnv": subproc, "AsyncVectorEnv": async_}

    def close() -> None:
        subproc.close()
        async_.close()

    return {f"{name}, N = {n}": Contender(stepping(env), n) for name, env in envs.items()}, close


# ---------------------------------------------------------------------- what an env adds


def no_live(untuned: bool) -> NoReturn:
    """Nothing is asked of a live teacher here."""
    raise NotImplementedError


def added(family: Family, data: TaskData, device: torch.device, decisions: int) -> dict[str, float]:
    """Parts of a step of one student: what is neither training nor evaluation (the median step), and evaluation.

    Teachers say random things, and students start anywhere: that costs the same.
    """
    store = random_store(data, device)
    init = random_start(data, architecture(data, family.recipe.layers, family.recipe.hidden))
    lab = Lab(
        family.recipe,
        data,
        device,
        lambda spec, _: Teacher(spec, store, "random", data, None, lambda _: store, no_live),
        lambda _: init,
    )
    episodes = Episodes(family, lab, 1, EpisodeConfig(reward_every=family.reward_every))
    family.action_space.seed(0)
    spent = episodes.process.cost.seconds
    steps = []
    for number in range(2 + decisions):
        if number == 0 or episodes.terminated[0]:
            episodes.begin([0], [number])
            episodes.observe()
        action, before = family.action_space.sample(), spent.copy()
        begin = time.perf_counter()
        episodes.step(family.decide([action], episodes))
        episodes.observe()
        episodes.info(0)
        whole = time.perf_counter() - begin
        steps.append((whole, sum(spent.values()) - sum(before.values()), spent["evaluation"] - before["evaluation"]))
    whole, inside, evaluation = np.array(steps[2:]).T  # the first ones warm up
    return {
        "milliseconds": float(np.median(whole)) * 1e3,
        "added": float(np.median(1 - inside / whole)),
        "evaluation": float(evaluation.sum() / whole.sum()),
    }


# ---------------------------------------------------------------------- agents


def timed(owner: Any, name: str, spent: Counter[str]) -> None:
    """Count the seconds of a method of this object."""
    work = getattr(owner, name)

    def timing(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - begin

    setattr(owner, name, timing)


def shares(agent: str, students: int, like: EnvSpec) -> dict[str, float]:
    """Where the time of a round of episodes goes while this agent learns, as parts of all; and its seconds."""
    env, settings = AGENTS[agent]
    cls, _, spec = agent_for(agent, replace(like, env=env))
    controller = cls(spec.make(), config=cls.Config(**settings))
    vector = spec.make_vec(students)
    process = vector.episodes.process
    outside, starts = Counter[str](), Counter[str]()
    timed(process, "reset", starts)
    timed(vector, "step", outside)
    timed(vector, "reset", outside)
    steps = spec.family.decisions * students
    with tempfile.TemporaryDirectory() as folder:
        controller.learn(vector, steps, Path(folder))
        outside.clear()
        starts.clear()
        before = process.cost.seconds.copy()
        begin = time.perf_counter()
        controller.learn(vector, steps, Path(folder))
        whole = time.perf_counter() - begin
    found = {part: seconds - before[part] for part, seconds in process.cost.seconds.items()}
    told = {
        "student": found["student"] - starts.total(),
        "starts": starts.total(),
        "evaluation": found["evaluation"],
        "policy": whole - outside.total(),
    }
    told["rest"] = whole - sum(told.values())
    return {**{part: seconds / whole for part, seconds in told.items()}, "seconds": whole}


def main() -> None:
    options = parser(__doc__, 3, 5)
    options.add_argument("--envs", type=int, nargs="+", default=[1, 4])
    options.add_argument("--backend", choices=("full", "tiny"), default="full", help="tiny: a trial, without naive")
    args = options.parse_args()
    device, spec = device_of(args), EnvSpec(ENV, device=args.device, backend=args.backend)
    lab = spec.lab()
    lab.teacher.store.cls.view(torch.int16).sum()  # read the file once: else whoever is first waits for the disk
    cores = torch.get_num_threads()
    threads = {n: max(1, cores // n) for n in args.envs}
    told: dict[str, Any] = {**about(device, lab.data), "env": ENV, "threads_of_a_worker": threads}
    print(f"{lab.data.source}, {told['device']}, {cores} threads; threads of each of N workers: {threads}")

    contenders, ends = {}, []
    if lab.teacher.folder is not None:
        contenders["naive"] = Contender(stepping(NaiveEnv(lab)), share=0.2)
    for n in args.envs:
        made, close = steppers(n, spec)
        contenders |= made
        ends.append(close)

    def keep(times: dict[str, list[float]]) -> None:
        told["ms"] = times
        told["steps_per_second"] = {name: 1e3 / statistics.median(found) for name, found in times.items()}
        save(args.out, told)

    times = alternate(contenders, args.repeats, args.updates, device, keep, warm=2)
    for close in ends:
        close()
    for n in args.envs:
        of = {name: found for name, found in times.items() if name == "naive" or name.endswith(f"N = {n}")}
        print(table(of, f"kd-gym, N = {n}", "ms/step"))
    print("env steps a second:", ", ".join(f"{rate:.2f} {name}" for name, rate in told["steps_per_second"].items()))
    bars(args.out, times, f"{ENV}: one env step, {told['device']}", "env step")

    instance = TeacherWeight(Origin("SST2"), granularity="instance")
    instance.recipe = replace(instance.recipe, process=replace(instance.recipe.process, batch=32))
    families: dict[str, tuple[Family, int]] = {
        "KnowledgeSelect, a decision of 10 updates": (KnowledgeSelect(Origin("SST2")), 28),
        "TeacherWeight, a decision for each of 32 samples and 4 teachers": (instance, 140),
    }
    told["step"] = {}
    for what, (family, decisions) in families.items():
        told["step"][what] = found = added(family, lab.data, device, decisions)
        print(f"{what}: {found['milliseconds']:.1f} ms")
        print(verdict("  observation, reward and info", found["added"], ADDED))
        print(verdict("  evaluation", found["evaluation"], EVALUATED))
        save(args.out, told)

    told["agents"] = {}
    for agent in AGENTS:
        told["agents"][agent] = found = shares(agent, max(args.envs), spec)
        parts = ", ".join(f"{part} {share:.1%}" for part, share in found.items() if part != "seconds")
        print(f"{agent}, {max(args.envs)} students, {found['seconds']:.1f} s: {parts}", flush=True)
        save(args.out, told)


if __name__ == "__main__":
    main()
