"""One stream of an experiment, played by one player: request, choice, lesson, in the order of its phases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandit.types import Context, Matrix
from simulations.paretobandit_protocol import Phase
from simulations.player import Lesson, Player, Request

SOURCE = "recorded"


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """What a player did in one phase: the chosen arm's index at each step (n,), and what came of it."""

    phase: Phase
    chosen: NDArray[np.int64]

    @property
    def quality(self) -> NDArray[np.float64]:
        return self.phase.world.quality[self.phase.rows, self.chosen]

    @property
    def cost_usd(self) -> NDArray[np.float64]:
        return self.phase.world.cost_usd[self.phase.rows, self.chosen]


def play(
    phases: Sequence[Phase], player: Player, contexts: Sequence[Context], vectors: Matrix
) -> tuple[Played, ...]:
    """contexts, vectors: of every prompt of the experiment, in the order that the phases' offsets count in."""
    done, n = [], 0
    for phase in phases:
        world, chosen = phase.world, np.zeros(len(phase.rows), dtype=np.int64)
        for step, row in enumerate(phase.rows):
            prompt = phase.offset + int(row)
            request = Request(n, prompt, contexts[prompt], world.arms, vectors[prompt])
            arm = player.choose(request).arm
            k = chosen[step] = world.column(arm)
            lesson = Lesson(
                n=n,
                row=prompt,
                arm=arm,
                quality=float(world.quality[row, k]),
                cost_usd=float(world.cost_usd[row, k]),
                tokens_in=int(world.tokens_in[row, k]),
                tokens_out=int(world.tokens_out[row, k]),
                source=SOURCE,
            )
            player.learn(lesson)
            n += 1
        done.append(Played(phase, chosen))
    return tuple(done)
