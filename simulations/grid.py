"""Many independent tasks on all cores, or on a Dask cluster, told one by one as they are done.

    for task, result in run_tasks(play_one, tasks, shared, cluster=None): ...

`function(shared, task)` must be importable by name (module level), and everything picklable. shared is handed to each
worker once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits
from tqdm import tqdm

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Shared, Task], Result],
    tasks: Sequence[Task],
    shared: Shared,
    *,
    cluster: str | None = None,
    title: str = "",
    progress: bool = False,
) -> Iterator[tuple[Task, Result]]:
    """(task, its result) in the order in which they are done. cluster: a Dask scheduler's address, e.g. tcp://host:8786."""
    run = (
        _on_this_machine(function, tasks, shared)
        if cluster is None
        else _on(cluster, function, tasks, shared)
    )
    return iter(tqdm(run, total=len(tasks), desc=title, unit="stream", disable=not progress))


def _on_this_machine(
    function: Callable[[Shared, Task], Result], tasks: Sequence[Task], shared: Shared
) -> Iterator[tuple[Task, Result]]:
    with ProcessPoolExecutor(
        max(1, min(len(tasks), os.cpu_count() or 1)),
        mp_context=get_context("spawn"),
        initializer=_begin,
        initargs=(function, shared),
    ) as pool:
        running = {pool.submit(_one, task): task for task in tasks}
        try:
            for future in as_completed(running):
                yield running.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_work: tuple[Callable[[Any, Any], Any], Any] | None = None  # what a worker process was started with


def _begin(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _work  # noqa: PLW0603 - a process pool hands its workers their data this way
    threadpool_limits(1)
    _work = (function, shared)


def _one(task: Any) -> Any:
    assert _work is not None
    function, shared = _work
    return function(shared, task)


def _on(
    address: str, function: Callable[[Shared, Task], Result], tasks: Sequence[Task], shared: Shared
) -> Iterator[tuple[Task, Result]]:
    if find_spec("distributed") is None:
        raise ValueError("--dask needs the package distributed: pip install 'fairlead[grid]'")
    distributed: Any = import_module("distributed")
    try:
        client = distributed.Client(address, timeout="5s")
    except OSError as error:
        raise ValueError(
            f"--dask: no scheduler answers at {address} ({error}); start one with: dask scheduler"
        ) from error
    with client:
        at_the_workers = client.scatter(shared, broadcast=True, hash=False)
        running = {
            future.key: (future, task)
            for task in tasks
            for future in [client.submit(_bounded, function, at_the_workers, task, pure=False)]
        }
        for future in distributed.as_completed([future for future, _ in running.values()]):
            yield running[future.key][1], future.result()
            future.release()


def _bounded(function: Callable[[Shared, Task], Result], shared: Shared, task: Task) -> Result:
    with threadpool_limits(1):
        return function(shared, task)
