"""The changes that scenarios are made of: each turns a world into another, once, before anybody plays it.

An arm is named by its role in the dataset under the goal:

    best      the highest mean utility        finest    the highest mean quality        cheapest, dearest   by mean cost
    second    the highest of the others       worst     the lowest mean utility
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from bandit.arms import Arm
from simulations.datasets import Dataset
from simulations.metrics import Goal, best_fixed
from simulations.world import Channel, Phase, World, laid_out

ROLES: Final = ("best", "second", "finest", "cheapest", "dearest", "worst")


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """What a change may ask: the dataset, which column plays which role, and chance."""

    dataset: Dataset
    cast: Mapping[str, int]
    rng: np.random.Generator


class Change(Protocol):
    def apply(self, world: World, stage: Stage) -> World: ...


def cast_of(dataset: Dataset, goal: Goal) -> dict[str, int]:
    """Role -> column."""
    if len(dataset.arms) < 2:
        raise ValueError(f"{dataset.name} has one model; a scenario needs at least two")
    quality, cost = dataset.quality.mean(axis=0), dataset.cost_usd.mean(axis=0)
    utility, best = goal.utility(quality, cost), best_fixed(dataset, goal)
    others = np.where(np.arange(len(utility)) == best, -np.inf, utility)
    return {
        "best": best,
        "second": int(np.argmax(others)),
        "finest": int(np.argmax(quality)),
        "cheapest": int(np.argmin(cost)),
        "dearest": int(np.argmax(cost)),
        "worst": int(np.argmin(utility)),
    }


def in_phases(world: World, names: Sequence[str]) -> World:
    """The same world with its stream cut into equal parts of these names, the same arms on offer in each."""
    (whole,) = world.phases
    if len(world) < len(names):
        raise ValueError(f"{world.name}: {len(world)} requests are too few for {len(names)} phases")
    edges = np.linspace(0, len(world), len(names) + 1).astype(int)
    return replace(
        world,
        phases=tuple(
            Phase(name, int(start), int(stop), whole.candidates)
            for name, start, stop in zip(names, edges, edges[1:], strict=False)
        ),
    )


@dataclass(frozen=True, slots=True)
class Price:
    """During a phase an arm's price is `factor` times what it was, and so is what it costs."""

    arm: str
    factor: float
    phase: str

    def apply(self, world: World, stage: Stage) -> World:
        k, during = stage.cast[self.arm], _during(world, [self.phase])
        return _priced(world, k, during, self.factor)


@dataclass(frozen=True, slots=True)
class Drop:
    """During a phase an arm's answers are worse: each by the same share, together by `by` in the mean. Nobody is told."""

    arm: str
    by: float
    phase: str

    def apply(self, world: World, stage: Stage) -> World:
        return _worse(world, stage.cast[self.arm], _during(world, [self.phase]), self.by)


@dataclass(frozen=True, slots=True)
class Withdraw:
    """During a phase an arm is not on offer."""

    arm: str
    phase: str

    def apply(self, world: World, stage: Stage) -> World:
        return _without(world, stage.cast[self.arm], lambda phase: phase.name == self.phase)


@dataclass(frozen=True, slots=True)
class Newcomer:
    """An arm is on offer only since a phase, at a mean cost `times` that of the other arm in the role `cost_of`, and
    worse_by in the mean than it was recorded.
    """

    arm: str
    cost_of: str
    since: str
    times: float = 1.0
    worse_by: float = 0.0

    def apply(self, world: World, stage: Stage) -> World:
        k, everywhere = stage.cast[self.arm], np.ones(len(world), dtype=np.bool_)
        start = next(phase.start for phase in world.phases if phase.name == self.since)
        costs = np.delete(stage.dataset.cost_usd.mean(axis=0), k)
        wanted = self.times * float(costs.min() if self.cost_of == "cheapest" else costs.max())
        own = float(stage.dataset.cost_usd[:, k].mean())
        if own > 0:
            world = _priced(world, k, everywhere, wanted / own)
        if self.worse_by:
            world = _worse(world, k, everywhere, self.worse_by)
        return _without(world, k, lambda phase: phase.start < start)


@dataclass(frozen=True, slots=True)
class Shift:
    """Requests are laid out by kind: in the first phase one half of the task families, in the second the other. Where there
    is one family, short prompts come first. Phases begin where the kinds change.
    """

    def apply(self, world: World, stage: Stage) -> World:
        second = _second_kind(stage.dataset)[world.rows]
        order = np.argsort(second, kind="stable")
        edge, n = int((~second).sum()), len(world)
        if edge in (0, n):
            raise ValueError(f"{stage.dataset.name}: all prompts are of one kind; a task shift needs two")
        first, last = world.phases
        phases = (replace(first, start=0, stop=edge), replace(last, start=edge, stop=n))
        return replace(laid_out(world, order), phases=phases)


@dataclass(frozen=True, slots=True)
class Late:
    """Every rating comes so many requests late."""

    requests: int

    def apply(self, world: World, stage: Stage) -> World:
        late = np.full(len(world), self.requests, dtype=np.int64)
        return replace(world, channels=tuple(replace(channel, delay=late) for channel in world.channels))


@dataclass(frozen=True, slots=True)
class Missing:
    """A share of the requests is never rated, whatever was answered."""

    share: float

    def apply(self, world: World, stage: Stage) -> World:
        never = stage.rng.random((len(world), 1)) < self.share
        return replace(
            world,
            channels=tuple(replace(c, told=np.where(never, np.nan, c.told)) for c in world.channels),
        )


@dataclass(frozen=True, slots=True)
class Judge:
    """A judge rates every answer, with errors of standard deviation `noise` and `bias` added to its favourite's; users
    rate a share of the requests, truly.
    """

    users: float
    noise: float = 0.0
    bias: float = 0.0
    favourite: str | None = None

    def apply(self, world: World, stage: Stage) -> World:
        (true,) = world.channels
        told = true.told + stage.rng.normal(0.0, self.noise, true.told.shape)
        if self.favourite is not None:
            told[:, stage.cast[self.favourite]] += self.bias
        judge = Channel("judge:recorded", np.clip(told, 0.0, 1.0), true.delay)
        silent = stage.rng.random((len(world), 1)) >= self.users
        users = Channel("user", np.where(silent, np.nan, true.told), true.delay)
        return replace(world, channels=(users, judge))


@dataclass(frozen=True, slots=True)
class Stricter:
    """During a phase a judge rates every model's answers `by` lower than before, but none below 0."""

    by: float
    phase: str

    def apply(self, world: World, stage: Stage) -> World:
        during = _during(world, [self.phase])[:, None]

        def judged(channel: Channel) -> Channel:
            if not channel.source.startswith("judge:"):
                return channel
            lower = np.maximum(channel.told - self.by, 0.0)
            return replace(channel, told=np.where(during, lower, channel.told))

        return replace(world, channels=tuple(judged(channel) for channel in world.channels))


@dataclass(frozen=True, slots=True)
class Poison:
    """A share of the requests is rated 1 where the favourite answered and 0 where another did."""

    favourite: str
    share: float

    def apply(self, world: World, stage: Stage) -> World:
        lies = np.zeros(world.quality.shape)
        lies[:, stage.cast[self.favourite]] = 1.0
        poisoned = stage.rng.random((len(world), 1)) < self.share
        return replace(
            world,
            channels=tuple(replace(c, told=np.where(poisoned, lies, c.told)) for c in world.channels),
        )


def _during(world: World, phases: Sequence[str]) -> NDArray[np.bool_]:
    """(n,) whether a request falls into one of the phases."""
    during = np.zeros(len(world), dtype=np.bool_)
    for phase in world.phases:
        during[phase.start : phase.stop] = phase.name in phases
    return during


def _priced(world: World, k: int, during: NDArray[np.bool_], factor: float) -> World:
    """Arm k's prices and costs times a factor in the phases that lie in `during`."""
    cost = world.cost_usd.copy()
    cost[during, k] *= factor

    def priced(arm: Arm) -> Arm:
        return replace(
            arm,
            price_usd_per_mtok_in=arm.price_usd_per_mtok_in * factor,
            price_usd_per_mtok_out=arm.price_usd_per_mtok_out * factor,
        )

    phases = tuple(
        replace(
            phase,
            candidates=tuple(
                priced(arm) if arm.name == world.arms[k] and during[phase.start] else arm
                for arm in phase.candidates
            ),
        )
        for phase in world.phases
    )
    return replace(world, cost_usd=cost, phases=phases)


def _worse(world: World, k: int, during: NDArray[np.bool_], by: float) -> World:
    """Arm k's answers worth less by the same share each, `by` in the mean; raters see it as it is."""
    share = min(by / max(float(world.quality[during, k].mean()), 1e-9), 1.0)

    def lowered(values: NDArray[np.float64]) -> NDArray[np.float64]:
        lower = values.copy()
        lower[during, k] *= 1.0 - share
        return lower

    channels = tuple(replace(channel, told=lowered(channel.told)) for channel in world.channels)
    return replace(world, quality=lowered(world.quality), channels=channels)


def _without(world: World, k: int, where: Callable[[Phase], bool]) -> World:
    phases = tuple(
        replace(phase, candidates=tuple(arm for arm in phase.candidates if arm.name != world.arms[k]))
        if where(phase)
        else phase
        for phase in world.phases
    )
    return replace(world, phases=phases)


def _second_kind(dataset: Dataset) -> NDArray[np.bool_]:
    """By row: of the second kind of task. Families are dealt out, the largest first, to the kind that has less."""
    families = [prompt.task_family for prompt in dataset.prompts]
    names, counts = np.unique(families, return_counts=True)
    if len(names) == 1:
        lengths = np.array([len(prompt.text) for prompt in dataset.prompts])
        return np.array(lengths > np.median(lengths))
    sizes, second = [0, 0], set()
    for i in np.argsort(-counts, kind="stable"):
        kind = int(sizes[1] < sizes[0])
        sizes[kind] += int(counts[i])
        if kind:
            second.add(str(names[i]))
    return np.array([family in second for family in families])
