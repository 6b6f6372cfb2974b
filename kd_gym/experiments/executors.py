"""Where the jobs of a benchmark run: in processes of this machine, or as Ray tasks. Both are one blocking call."""

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any, Literal, Protocol, TypeVar

from kd_gym.errors import KDGymError

ATTEMPTS = 3  # of a job whose worker died
CONNECT_SECONDS = 25  # for a Ray cluster to answer
T = TypeVar("T")
ExecutorKind = Literal["local", "ray"]


class WorkerDiedError(KDGymError):
    """A job's worker died each time that it was tried."""


class Executor(Protocol):
    """Runs functions elsewhere; called from several threads at once."""

    workers: int

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """What the function returns; what it raises is raised here; `WorkerDiedError` where no worker survives it."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


def _follow_parent() -> None:
    """End this process with the one that started it, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class Local:
    """As many processes as there are jobs at the same time; a dead one is replaced, and only its job is tried again."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._closed = False
        self._idle: list[ProcessPoolExecutor] = []  # each of one process, so that it is known whose job has died
        self._all: list[ProcessPoolExecutor] = []

    def _process(self) -> ProcessPoolExecutor:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._all.append(ProcessPoolExecutor(1, mp_context=context, initializer=_follow_parent))
        return self._all[-1]

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """As `Executor` says."""
        for _ in range(ATTEMPTS):
            process = self._process()
            future = process.submit(function, *args)
            if not isinstance(future.exception(), BrokenExecutor):
                self._idle.append(process)
                return future.result()
            if self._closed:
                raise WorkerDiedError("the run was ended")
        raise WorkerDiedError(f"its worker died {ATTEMPTS} times")

    def close(self) -> None:
        """Let the workers go, at once."""
        self._closed = True
        for process in self._all:
            for worker in (process._processes or {}).values():  # one that computes does not hear a shutdown
                worker.terminate()
            process.shutdown(wait=False, cancel_futures=True)


class Ray:
    """Ray tasks with a share of a GPU each, where the cluster has any; Ray itself repeats those of a dead node.

    Args:
        workers: tasks at the same time; None: as many as the cluster has CPUs.
        address: of a running cluster; `auto` finds the one of this machine, or starts one.
    """

    def __init__(self, workers: int | None, address: str = "auto") -> None:
        try:
            ray = importlib.import_module("ray")
        except ImportError:
            raise KDGymError("--executor ray needs Ray: pip install 'kd-gym[ray]'") from None
        self.ray: Any = ray
        if not ray.is_initialized():
            _connect(ray, address)
        resources = ray.cluster_resources()
        self.workers = workers or max(1, int(resources.get("CPU", 1)))
        share = resources.get("GPU", 0) / self.workers
        options = {"num_gpus": min(1.0, share)} if share else {}
        self._options = {"num_cpus": 1, "max_retries": ATTEMPTS - 1, **options}

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """As `Executor` says."""
        ray = self.ray
        try:
            found: T = ray.get(ray.remote(function).options(**self._options).remote(*args))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            why = " ".join(str(error).split())[:300]
            raise WorkerDiedError(f"no worker survived it, or none started ({type(error).__name__}: {why})") from None
        return found

    def close(self) -> None:
        """Leave the cluster."""
        self.ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Join the cluster at an address, or raise within half a minute."""
    own = {key: value for key, value in os.environ.items() if key.startswith("KD_GYM_")}  # where data and cache are
    quiet = {"log_to_driver": False, "logging_level": "error", "runtime_env": {"env_vars": own}}
    if address == "auto":
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:
            ray.init(include_dashboard=False, **quiet)
        return
    failure: list[BaseException] = []

    def join() -> None:
        try:
            ray.init(address=address, **quiet)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if thread.is_alive() or failure:
        why = f" ({type(failure[0]).__name__})" if failure else ""
        raise KDGymError(f"no Ray cluster answers at {address}{why}; start one with: ray start --head")


def executor(kind: ExecutorKind, workers: int | None, address: str = "auto") -> Executor:
    """An executor by name."""
    return Ray(workers, address) if kind == "ray" else Local(workers or max(1, os.cpu_count() or 1))
