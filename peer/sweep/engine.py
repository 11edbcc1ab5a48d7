"""Where the runs of a sweep take place: in this process, in local ones, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias, TypeVar

from relayswarm.errors import ConfigError

Engine: TypeAlias = Literal["local", "ray"]

J = TypeVar("J")
R = TypeVar("R")


def check_engine(engine: str) -> None:
    """Raise ConfigError if it is not one, or not installed."""
    if engine not in ("local", "ray"):
        raise ConfigError("--engine", engine, "unknown engine", "known: local, ray")
    if engine == "ray" and find_spec("ray") is None:
        remedy = "install it with `pip install relayswarm[ray]`, or use --engine local"
        raise ConfigError("--engine", "ray", "Ray is not installed", remedy)


def run_all(
    function: Callable[[J], R], jobs: Sequence[J], *, engine: Engine = "local", workers: int = 1
) -> Iterator[tuple[J, R]]:
    """Results as they come in, in any order, each with its job.

    `function` is a module's own, jobs and results can be pickled. The first error ends it all.
    """
    if engine == "ray":
        return _on_ray(function, jobs)
    if workers == 1 or len(jobs) < 2:
        return ((job, function(job)) for job in jobs)
    return _in_processes(function, jobs, min(workers, len(jobs)))


def _in_processes(
    function: Callable[[J], R], jobs: Sequence[J], workers: int
) -> Iterator[tuple[J, R]]:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(workers, context, initializer=_depend_on_parent)
    try:
        futures = {pool.submit(function, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:
        # Waiting for what they are at could take long, and deadlocks if Ctrl+C comes once more.
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _depend_on_parent() -> None:
    """Ctrl+C is for the process that started us; it ends us, and if it dies we die too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _on_ray(function: Callable[[J], R], jobs: Sequence[J]) -> Iterator[tuple[J, R]]:
    """On the cluster that RAY_ADDRESS names, or else on this machine; one core for each run."""
    import ray

    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    try:
        remote: Any = ray.remote(num_cpus=1)(function)
        waiting = {remote.remote(job): job for job in jobs}
        while waiting:
            ready, _ = ray.wait(list(waiting))
            for reference in ready:
                yield waiting.pop(reference), _fetch(reference)
    finally:
        ray.shutdown()


def _fetch(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, BaseException):
            raise error.cause from error
        raise
