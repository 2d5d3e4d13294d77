"""How rarely drift is seen where there is none, and how soon where there is: by simulation of what replicas really fold.

Ratings are drawn, predicted by the router's own posterior, learned by `feedback.learn` and their alarms answered by
`feedback.alarms`, cold start included. Beside our detector runs the usual one on the same innovations: a CUSUM of z-scores
clipped at 4 with k = 0.25, and with h = 20, which keeps about the same promise in most of these worlds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.stats import beta, chi2

from bandit.quality import SharedBaseline
from bandit.types import Vector
from feedback.alarms import answers
from feedback.events import Rated
from feedback.learn import learn
from feedback.records import DecisionPrefix
from feedback.state import State
from simulations.grid import run_tasks
from simulations.tables import plain

TAG: Final = b"drifting"
D: Final = 5
REFRESH: Final = 20  # labels between two posteriors, as if a replica had read them at once
STREAM_LABELS: Final = 10_000  # of all arms together, then everything begins anew
BEFORE: Final = 1000  # labels of the arm before it changes
HORIZON: Final = 1000  # labels after it
CHANGES: Final = (-0.05, -0.1, -0.2, 0.05, 0.1, 0.2)


@dataclass(frozen=True, slots=True)
class World:
    """Arms with these mean ratings. kind: "0/1", or "graded" in quarters with a spread of 0.2; slope: how far a feature of
    size one moves an arm's mean, in a direction of its own.
    """

    kind: str
    means: tuple[float, ...]
    slope: float = 0.03

    def rate(self, x: Vector, arm: int, shift: float, rng: np.random.Generator) -> float:
        directions = (x[1], x[2], x[3], x[4])
        mean = min(max(self.means[arm] + shift + self.slope * directions[arm % 4], 0.0), 1.0)
        if self.kind == "0/1":
            return float(rng.random() < mean)
        return float(np.clip(np.round(rng.normal(mean, 0.2) * 4) / 4, 0.0, 1.0))


STEADY: Final = (
    World("0/1", (0.1, 0.2, 0.15)),
    World("0/1", (0.5, 0.6, 0.4)),
    World("0/1", (0.9, 0.8, 0.85)),
    World("0/1", (0.95, 0.3, 0.7)),
    World("0/1", (0.97, 0.97, 0.5)),
    World("graded", (0.5, 0.6, 0.7)),
    World("graded", (0.9, 0.8, 0.3)),
)
CHANGING: Final = (World("0/1", (0.8, 0.7)), World("0/1", (0.5, 0.6)), World("graded", (0.7, 0.6)))


@dataclass(slots=True)
class Cusum:
    """The usual detector of one arm: two sums of clipped z-scores; begins anew after its alarm."""

    up: float = 0.0
    down: float = 0.0

    def alarms(self, z: float, *, k: float = 0.25, h: float = 20.0, clip: float = 4.0) -> bool:
        z = min(max(z, -clip), clip)
        self.up, self.down = max(0.0, self.up + z - k), max(0.0, self.down - z - k)
        if max(self.up, self.down) <= h:
            return False
        self.up = self.down = 0.0
        return True


@dataclass(frozen=True, slots=True)
class Label:
    """One label of a stream: of which arm, and whether it raised an alarm with us and with the CUSUM."""

    arm: int
    alarm: bool
    cusum: bool


def labels(
    world: World, arms: Iterable[int], rng: np.random.Generator, shift: Callable[[int, int], float]
) -> Iterator[Label]:
    """Ratings of these arms in turn, from nothing. shift: (arm, how many of its labels came before) -> by how much its
    mean differs now.
    """
    state, model = State(TAG, D), SharedBaseline()
    posterior = state.posterior(model)
    seen, cusums = [0] * len(world.means), [Cusum() for _ in world.means]
    for number, arm in enumerate(arms):
        if number % REFRESH == 0:
            posterior = state.posterior(model)
        x = np.concatenate([[1.0], rng.normal(size=D - 1)])
        name = f"arm-{arm}"
        expected = posterior.quality.predict(x, [name])
        mean, sd = float(expected.mean[0]), float(expected.sd()[0])
        noise = float(np.sqrt(sd * sd + posterior.quality.noise_variance))
        rating = world.rate(x, arm, shift(arm, seen[arm]), rng)
        seen[arm] += 1
        decision = DecisionPrefix(
            name, x, float(number), 0.5, TAG, b"simulate", quality_mean=mean, quality_sd=sd
        )
        state = learn(state, Rated(decision, "user", rating))
        yield Label(arm, bool(state.alarms), cusums[arm].alarms((rating - mean) / noise))
        for answer in answers(state):
            state = learn(state, answer)


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    world: World
    labels: int
    ours: int
    cusum: int


def false_alarms(world: World, count: int, seed: int) -> FalseAlarms:
    """Over `count` labels of a world in which nothing changes."""
    rng, ours, cusum = np.random.default_rng([seed, STEADY.index(world)]), 0, 0
    for start in range(0, count, STREAM_LABELS):
        arms = rng.integers(0, len(world.means), min(STREAM_LABELS, count - start)).tolist()
        for label in labels(world, arms, rng, lambda _arm, _seen: 0.0):
            ours, cusum = ours + label.alarm, cusum + label.cusum
    return FalseAlarms(world, count, ours, cusum)


@dataclass(frozen=True, slots=True)
class Delays:
    """Labels of the changed arm from its change to the alarm, one for each run; None: not within the horizon. Runs whose
    alarm came before the change are left out.
    """

    world: World
    change: float
    ours: tuple[int | None, ...]
    cusum: tuple[int | None, ...]


def delays(job: tuple[World, float], runs: int, seed: int) -> Delays:
    """The first arm of a world changes; from then on it has all the traffic, as a favourite has nearly all."""
    world, change = job
    rng = np.random.default_rng([seed, CHANGING.index(world), CHANGES.index(change)])
    both: list[tuple[int | None, int | None]] = [_delay(world, change, rng) for _ in range(runs)]
    ours = tuple(delay for delay, _ in both if delay is None or delay > 0)
    cusum = tuple(delay for _, delay in both if delay is None or delay > 0)
    return Delays(world, change, ours, cusum)


def _delay(world: World, change: float, rng: np.random.Generator) -> tuple[int | None, int | None]:
    before = rng.permutation(np.repeat(np.arange(len(world.means)), BEFORE)).tolist()
    stream = labels(
        world, before + [0] * HORIZON, rng, lambda arm, seen: change if arm == 0 and seen >= BEFORE else 0.0
    )
    ours: int | None = None
    cusum: int | None = None
    for number, label in enumerate(stream, 1 - len(before)):
        ours = number if ours is None and label.alarm and label.arm == 0 else ours
        cusum = number if cusum is None and label.cusum and label.arm == 0 else cusum
        if ours is not None and cusum is not None:
            break
    return ours, cusum


@dataclass(frozen=True, slots=True)
class Plan:
    """How many labels of each steady world, how many runs of each change."""

    labels: int
    runs: int
    seed: int


def run(plan: Plan, *, cluster: str | None = None, progress: bool = False) -> None:
    """Print both tables."""
    jobs: list[World | tuple[World, float]] = [
        *STEADY,
        *((world, change) for world in CHANGING for change in CHANGES),
    ]
    done = dict(run_tasks(_one, jobs, plan, cluster=cluster, title="drift", progress=progress))
    steady = [done[job] for job in jobs if isinstance(job, World)]
    changed = [done[job] for job in jobs if not isinstance(job, World)]
    print(
        f"False alarms per 10,000 labels of an arm, 95 % intervals; {plan.labels} labels each, cold starts included\n"
    )
    print(plain([["ratings", "means", "detector", "cusum"], *map(_false_row, steady)]))
    print(
        f"\nLabels from change to alarm: median [95 % of it], share found within {HORIZON}; {plan.runs} runs each\n"
    )
    head = ["ratings", "mean", "change", "detector", "found", "cusum", "found"]
    print(plain([head, *map(_delay_row, changed)]))


def _one(plan: Plan, job: World | tuple[World, float]) -> Any:
    if isinstance(job, World):
        return false_alarms(job, plan.labels, plan.seed)
    return delays(job, plan.runs, plan.seed)


def _false_row(counted: FalseAlarms) -> list[str]:
    means = " ".join(f"{mean:g}" for mean in counted.world.means)
    rates = (rate_interval(n, counted.labels) for n in (counted.ours, counted.cusum))
    return [counted.world.kind, means, *(f"{rate:.2f} [{low:.2f}, {high:.2f}]" for rate, low, high in rates)]


def _delay_row(timed: Delays) -> list[str]:
    row = [timed.world.kind, f"{timed.world.means[0]:g}", f"{timed.change:+g}"]
    for found in (timed.ours, timed.cusum):
        row += [_median(found), _share(found)]
    return row


def rate_interval(events: int, count: int) -> tuple[float, float, float]:
    """Events per 10,000 and the exact 95 % interval of a Poisson rate."""
    per = 10_000 / count
    low = chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    return events * per, float(low * per), float(chi2.ppf(0.975, 2 * events + 2) / 2 * per)


def _median(found: Sequence[int | None]) -> str:
    """Median with the order statistics that hold it in 95 % of samples; ">" where it is beyond the horizon."""
    ordered = sorted(HORIZON + 1 if delay is None else delay for delay in found)
    n = len(ordered)
    if n == 0:
        return "-"
    spread = 1.96 * np.sqrt(n) / 2
    low, high = max(int(n / 2 - spread), 0), min(int(np.ceil(n / 2 + spread)), n - 1)
    told = [f"> {HORIZON}" if v > HORIZON else str(v) for v in (ordered[n // 2], ordered[low], ordered[high])]
    return f"{told[0]} [{told[1]}, {told[2]}]"


def _share(found: Sequence[int | None]) -> str:
    n, k = len(found), sum(delay is not None for delay in found)
    if n == 0:
        return "-"
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    return f"{100 * k / n:.0f} % [{100 * float(low):.0f}, {100 * float(beta.ppf(0.975, k + 1, n - k) if k < n else 1.0):.0f}]"
