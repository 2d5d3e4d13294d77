"""Hedging: when an answer is slow to begin, a second one is asked for, and the first to begin is taken."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def hedged(
    first: Coroutine[Any, Any, T],
    second: Callable[[], Coroutine[Any, Any, T] | None],
    after_s: float,
    *,
    discard: Callable[[T], None],
) -> T:
    """The result that comes first; the other is cancelled, or discarded if it came at the same moment.

    second: begins the other after `after_s` seconds without a result of the first; None if there is none to be had.
    Where one fails the other is waited for; where both fail, the failure that came last is raised.
    """
    tasks = [asyncio.create_task(first)]
    taken: asyncio.Task[T] | None = None
    try:
        done, waiting = await asyncio.wait(tasks, timeout=after_s)
        if not done and (other := second()) is not None:
            tasks.append(asyncio.create_task(other))
            waiting = set(tasks)
        while waiting and not any(_worked(task) for task in done):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        taken = next((task for task in tasks if task in done and _worked(task)), None) or done.pop()
        return taken.result()
    finally:
        await _clear([task for task in tasks if task is not taken], discard)


def _worked(task: "asyncio.Task[T]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _clear(tasks: "list[asyncio.Task[T]]", discard: Callable[[T], None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if _worked(task):
            discard(task.result())
