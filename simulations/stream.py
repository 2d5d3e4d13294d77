"""The only loop over requests in these simulations: a world, played by one contestant.

The network is replaced by the recorded matrix. A contestant sees only the outcome of the arm it chose, as its raters tell
it and when they do, and no cost before it has chosen.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bandit.types import Context, Matrix
from simulations.player import Choice, Lesson, Player, Request
from simulations.world import World

USAGE: Final = "usage"  # the source of a lesson that tells only what a call took


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Request n: row of the dataset, what was chosen and how long that took, what the answer was truly worth."""

    n: int
    row: int
    choice: Choice
    choice_ns: int
    quality: float
    cost_usd: float


def play(
    world: World,
    contexts: Sequence[Context],
    player: Player,
    *,
    vectors: Matrix | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Iterator[Step]:
    """The player's steps through the world. contexts (and vectors, where it asks for foreign ones): by dataset row."""
    columns = {name: k for k, name in enumerate(world.arms)}
    due: defaultdict[int, list[Lesson]] = defaultdict(
        list
    )  # position after which a lesson is told -> lessons
    for phase in world.phases:
        for n in range(phase.start, phase.stop):
            row = int(world.rows[n])
            vector = None if vectors is None else vectors[row]
            request = Request(n, row, contexts[row], phase.candidates, vector)
            started = clock()
            choice = player.choose(request)
            took = clock() - started
            if all(choice.arm != arm.name for arm in phase.candidates):
                raise ValueError(f"request {n}: {choice.arm!r} was chosen and is not on offer")
            k = columns[choice.arm]
            yield Step(n, row, choice, took, float(world.quality[n, k]), float(world.cost_usd[n, k]))
            for later, lesson in _lessons(world, n, k):
                due[later].append(lesson)
            for lesson in due.pop(n, ()):
                player.learn(lesson)


def _lessons(world: World, n: int, k: int) -> list[tuple[int, Lesson]]:
    """(after which request, lesson): the first at once, whether anybody has rated by then or not."""

    def lesson(quality: float | None, source: str) -> Lesson:
        return Lesson(
            n=n,
            row=int(world.rows[n]),
            arm=world.arms[k],
            quality=quality,
            cost_usd=float(world.cost_usd[n, k]),
            tokens_in=int(world.tokens_in[n, k]),
            tokens_out=int(world.tokens_out[n, k]),
            source=source,
        )

    rated = [
        (n + int(channel.delay[n]), lesson(float(channel.told[n, k]), channel.source))
        for channel in world.channels
        if not np.isnan(channel.told[n, k])
    ]
    at_once = any(later == n for later, _ in rated)
    return rated if at_once else [(n, lesson(None, USAGE)), *rated]
