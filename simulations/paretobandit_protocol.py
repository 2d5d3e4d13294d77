"""ParetoBandit's published experiments as declarations: which requests in which order, in which phases, at which budgets.

Taken from the scripts of its public repository (experiments/01 ... 04 and appendix/warmup_ablation; 20 seeds each):

    stationary      learn on val (1,785), then measure on test (1,824) while learning on; seven budgets, log-spaced from
                    the cheapest to the dearest model's mean cost on val; seeds 3000 ...
    unconstrained   test only, from the first request; regret against the best model of each prompt; seeds 9000 ...
    degradation     val, then 608 requests as recorded, 608 others to which Mistral answers with quality 0.75 each, at
                    unchanged cost, then the first 608 again; three budgets; seeds 6000 ...
    price-drop      the same three phases, but in the second Gemini Pro costs 0.10 USD per million tokens, and its recorded
                    costs fall in the ratio of the mean list prices; seeds 8000 ...
    onboarding      val with three models, then Gemini Flash joins; good and cheap, bad (its quality halved), dear (its
                    cost times ten); three budgets and none; seeds 9000 ...

A seed's generator shuffles the phases one after the other, so a stream here is the published stream request by request.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bandit.arms import Arm
from simulations.datasets import Dataset, DatasetError, load_folder, load_wheel, take

Rows = NDArray[np.int64]

SEEDS: Final = 20
BUDGETS_USD: Final = {"tight": 3.0e-4, "moderate": 6.62e-4, "loose": 1.87e-3}
VAL: Final = 1785
TEST: Final = 1824
PHASE: Final = 608
PARTITION_SEED: Final = 42  # which test prompts make up phase 1 and phase 2
DEGRADED: Final = ("mistral-large-2512", 0.75)
PRICE_DROP: Final = ("gemini-2.5-pro", 0.10, 0.10)
NEWCOMER: Final = "gemini-2.5-flash"
NEWCOMER_CASES: Final = {"good": (1.0, 1.0), "bad": (0.5, 1.0), "dear": (1.0, 10.0)}  # factors on quality and cost


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """A stretch of the stream. world: what every arm would do in it. rows: of the world, in the order they are asked.

    offset: of the world's rows in the vectors of the whole experiment.
    """

    name: str
    world: Dataset
    rows: Rows
    offset: int
    measured: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """name; texts of all prompts, in the order that offsets count in; budgets by name (None: unconstrained); the seed of
    its first stream; and the phases of the stream of a seed.
    """

    name: str
    texts: tuple[str, ...]
    budgets_usd: Mapping[str, float | None]
    first_seed: int
    phases: Callable[[int], tuple[Phase, ...]]

    def seeds(self, count: int) -> range:
        return range(self.first_seed, self.first_seed + count)


def experiments(data: Path | None) -> Iterator[Experiment]:
    """All of them; the onboarding needs `data`, a folder that holds Gemini Flash's outcomes, and is left out without."""
    wheel = load_wheel()
    val, test = take(wheel, np.arange(VAL)), take(wheel, np.arange(VAL, VAL + TEST))
    yield stationary(val, test)
    yield unconstrained(test)
    yield degradation(val, test)
    yield price_drop(val, test)
    if data is not None:
        for case in NEWCOMER_CASES:
            yield onboarding(val, load_newcomer(data), case)


def stationary(val: Dataset, test: Dataset) -> Experiment:
    means = val.cost_usd.mean(axis=0)
    budgets = {f"{usd:.1e}": float(usd) for usd in np.geomspace(means.min(), means.max(), 7)}

    def phases(seed: int) -> tuple[Phase, ...]:
        rng = np.random.default_rng(seed)
        return _learning(val, rng), Phase("test", test, rng.permutation(TEST), VAL)

    return Experiment("stationary", _texts(val, test), budgets, 3000, phases)


def unconstrained(test: Dataset) -> Experiment:
    def phases(seed: int) -> tuple[Phase, ...]:
        return (Phase("test", test, np.random.default_rng(seed).permutation(TEST), 0),)

    return Experiment("unconstrained", _texts(test), {"none": None}, 9000, phases)


def degradation(val: Dataset, test: Dataset) -> Experiment:
    return _three_phases("degradation", val, test, degraded(_second(test)), 6000)


def price_drop(val: Dataset, test: Dataset) -> Experiment:
    return _three_phases("price-drop", val, test, repriced(_second(test)), 8000)


def onboarding(val: Dataset, with_newcomer: Dataset, case: str) -> Experiment:
    """case: of NEWCOMER_CASES."""
    world = newcomer_scaled(with_newcomer, *NEWCOMER_CASES[case])

    def phases(seed: int) -> tuple[Phase, ...]:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(world.prompts))
        return _learning(val, rng), Phase("newcomer", world, order, VAL)

    budgets: dict[str, float | None] = {**BUDGETS_USD, "none": None}
    return Experiment(f"onboarding-{case}", _texts(val, world), budgets, 9000, phases)


def load_newcomer(folder: Path) -> Dataset:
    """Outcomes of the test prompts in a folder, with Gemini Flash among the models. DatasetError where it is absent."""
    data = load_folder(folder)
    models = {arm.name for arm in data.arms}
    if NEWCOMER not in models:
        raise DatasetError(f"{folder} has no outcomes of {NEWCOMER}; its models are {', '.join(sorted(models))}")
    rows = _test_rows(folder)
    return take(data, rows)


def degraded(world: Dataset) -> Dataset:
    """The degraded model answers every prompt alike; its costs stay."""
    model, everywhere = DEGRADED
    quality = world.quality.copy()
    quality[:, world.column(model)] = everywhere
    return replace(world, quality=quality)


def repriced(world: Dataset) -> Dataset:
    """The new list price, and recorded costs in the ratio of the mean list prices, as published."""
    model, price_in, price_out = PRICE_DROP
    column = world.column(model)
    old = world.arms[column]
    cost = world.cost_usd.copy()
    cost[:, column] *= (price_in + price_out) / (old.price_usd_per_mtok_in + old.price_usd_per_mtok_out)
    return replace(world, cost_usd=cost, arms=_with(world, replace(old, price_usd_per_mtok_in=price_in, price_usd_per_mtok_out=price_out)))


def newcomer_scaled(world: Dataset, quality_factor: float, cost_factor: float) -> Dataset:
    column = world.column(NEWCOMER)
    quality, cost = world.quality.copy(), world.cost_usd.copy()
    quality[:, column] *= quality_factor
    cost[:, column] *= cost_factor
    old = world.arms[column]
    arm = replace(
        old,
        price_usd_per_mtok_in=old.price_usd_per_mtok_in * cost_factor,
        price_usd_per_mtok_out=old.price_usd_per_mtok_out * cost_factor,
    )
    return replace(world, quality=quality, cost_usd=cost, arms=_with(world, arm))


def _three_phases(name: str, val: Dataset, test: Dataset, second: Dataset, first_seed: int) -> Experiment:
    first = _first(test)

    def phases(seed: int) -> tuple[Phase, ...]:
        rng = np.random.default_rng(seed)
        learning = _learning(val, rng)
        orders = [rng.permutation(PHASE) for _ in range(3)]
        return (
            learning,
            Phase("P1", first, orders[0], VAL),
            Phase("P2", second, orders[1], VAL + PHASE),
            Phase("P3", first, orders[2], VAL),
        )

    return Experiment(name, _texts(val, first, second), BUDGETS_USD, first_seed, phases)


def _learning(val: Dataset, rng: np.random.Generator) -> Phase:
    return Phase("learning", val, rng.permutation(len(val.prompts)), 0, measured=False)


def _first(test: Dataset) -> Dataset:
    return take(test, _partition()[:PHASE])


def _second(test: Dataset) -> Dataset:
    return take(test, _partition()[PHASE : 2 * PHASE])


def _partition() -> Rows:
    order: Rows = np.random.default_rng(PARTITION_SEED).permutation(TEST)
    return order


def _test_rows(folder: Path) -> Rows:
    """Rows of the prompts that their authors measured on."""
    splits = pq.read_table(folder / "prompts.parquet", columns=["origin_split"]).column(0).to_pylist()
    rows: Rows = np.flatnonzero(np.array(splits) == "test")
    return rows


def _with(world: Dataset, arm: Arm) -> tuple[Arm, ...]:
    return tuple(arm if arm.name == old.name else old for old in world.arms)


def _texts(*worlds: Dataset) -> tuple[str, ...]:
    return tuple(prompt.text for world in worlds for prompt in world.prompts)
