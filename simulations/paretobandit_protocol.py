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
from typing import Final, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bandit.arms import Arm
from simulations.datasets import Dataset, DatasetError, RecordedPrompt, load_folder, load_wheel, take
from simulations.world import RECORDED, Channel, Phase, World

Rows = NDArray[np.int64]
Number = TypeVar("Number", np.float64, np.int64)

SEEDS: Final = 20
BUDGETS_USD: Final[Mapping[str, float | None]] = {"tight": 3.0e-4, "moderate": 6.62e-4, "loose": 1.87e-3}
VAL: Final = 1785
TEST: Final = 1824
PHASE: Final = 608
PARTITION_SEED: Final = 42  # which test prompts make up phase 1 and phase 2
DEGRADED: Final = ("mistral-large-2512", 0.75)
PRICE_DROP: Final = ("gemini-2.5-pro", 0.10, 0.10)
NEWCOMER: Final = "gemini-2.5-flash"
NEWCOMER_CASES: Final = {
    "good": (1.0, 1.0),
    "bad": (0.5, 1.0),
    "dear": (1.0, 10.0),
}  # factors on quality and cost
LEARNING: Final = "learning"  # the phase that is played and not measured


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """prompts: all that occur, in the order that a world's rows count in. budgets_usd: by name; None is no budget.

    first_seed: of the published streams. world: the stream of a seed; what it does in the phase LEARNING is not measured.
    """

    name: str
    prompts: tuple[RecordedPrompt, ...]
    budgets_usd: Mapping[str, float | None]
    first_seed: int
    world: Callable[[int], World]

    def texts(self) -> tuple[str, ...]:
        return tuple(prompt.text for prompt in self.prompts)


def experiments(data: Path | None) -> Iterator[Experiment]:
    """All of them; onboarding needs `data`, a folder with Gemini Flash's outcomes, and is left out without it."""
    wheel = load_wheel()
    val, test = take(wheel, np.arange(VAL)), take(wheel, np.arange(VAL, VAL + TEST))
    yield stationary(val, test)
    yield unconstrained(test)
    yield degradation(val, test)
    yield price_drop(val, test)
    if data is not None:
        with_newcomer = load_newcomer(data)
        for case in NEWCOMER_CASES:
            yield onboarding(val, with_newcomer, case)


def stationary(val: Dataset, test: Dataset) -> Experiment:
    means = val.cost_usd.mean(axis=0)
    budgets: dict[str, float | None] = {
        f"{usd:.1e}": float(usd) for usd in np.geomspace(means.min(), means.max(), 7)
    }

    def world(seed: int) -> World:
        rng = np.random.default_rng(seed)
        return _world(
            "stationary", _learning(val, rng), _Part("test", test, rng.permutation(len(test.prompts)))
        )

    return Experiment("stationary", (*val.prompts, *test.prompts), budgets, 3000, world)


def unconstrained(test: Dataset) -> Experiment:
    def world(seed: int) -> World:
        order = np.random.default_rng(seed).permutation(len(test.prompts))
        return _world("unconstrained", _Part("test", test, order))

    return Experiment("unconstrained", test.prompts, {"none": None}, 9000, world)


def degradation(val: Dataset, test: Dataset) -> Experiment:
    return _three_phases("degradation", val, test, degraded, 6000)


def price_drop(val: Dataset, test: Dataset) -> Experiment:
    return _three_phases("price-drop", val, test, repriced, 8000)


def onboarding(val: Dataset, with_newcomer: Dataset, case: str) -> Experiment:
    """case: of NEWCOMER_CASES."""
    name, later = f"onboarding-{case}", newcomer_scaled(with_newcomer, *NEWCOMER_CASES[case])

    def world(seed: int) -> World:
        rng = np.random.default_rng(seed)
        return _world(
            name, _learning(val, rng), _Part("newcomer", later, rng.permutation(len(later.prompts)))
        )

    return Experiment(name, (*val.prompts, *later.prompts), {**BUDGETS_USD, "none": None}, 9000, world)


def load_newcomer(folder: Path) -> Dataset:
    """Outcomes of the test prompts in a folder, with Gemini Flash among the models. DatasetError where it is absent."""
    data = load_folder(folder)
    models = {arm.name for arm in data.arms}
    if NEWCOMER not in models:
        raise DatasetError(
            f"{folder} has no outcomes of {NEWCOMER}; its models are {', '.join(sorted(models))}"
        )
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
    return replace(
        world,
        cost_usd=cost,
        arms=_with(world, replace(old, price_usd_per_mtok_in=price_in, price_usd_per_mtok_out=price_out)),
    )


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


def _three_phases(
    name: str, val: Dataset, test: Dataset, changed: Callable[[Dataset], Dataset], first_seed: int
) -> Experiment:
    partition = np.random.default_rng(PARTITION_SEED).permutation(len(test.prompts))
    first, other = take(test, partition[:PHASE]), take(test, partition[PHASE : 2 * PHASE])
    second = changed(other)

    def world(seed: int) -> World:
        rng = np.random.default_rng(seed)
        learning = _learning(val, rng)
        orders = [rng.permutation(len(part.prompts)) for part in (first, second, first)]
        return _world(
            name,
            learning,
            _Part("P1", first, orders[0]),
            _Part("P2", second, orders[1]),
            _Part("P3", first, orders[2]),
        )

    return Experiment(name, (*val.prompts, *first.prompts, *second.prompts), BUDGETS_USD, first_seed, world)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A stretch of a stream: what every arm would do in it, and the order in which its prompts are asked."""

    name: str
    outcomes: Dataset
    order: Rows


def _learning(val: Dataset, rng: np.random.Generator) -> _Part:
    return _Part(LEARNING, val, rng.permutation(len(val.prompts)))


def _world(name: str, *parts: _Part) -> World:
    """The parts one after the other. An arm that a part does not know is not on offer in it."""
    arms = tuple(dict.fromkeys(arm.name for part in parts for arm in part.outcomes.arms))
    offsets: dict[int, int] = {}  # of each dataset's prompts among all that occur
    rows, phases, start, known = [], [], 0, 0
    for part in parts:
        key = id(part.outcomes)
        if key not in offsets:
            offsets[key], known = known, known + len(part.outcomes.prompts)
        rows.append(offsets[key] + part.order)
        phases.append(Phase(part.name, start, start + len(part.order), part.outcomes.arms))
        start += len(part.order)
    quality = _laid_out(arms, parts, [part.outcomes.quality for part in parts])
    return World(
        name=name,
        arms=arms,
        rows=np.concatenate(rows),
        quality=quality,
        cost_usd=_laid_out(arms, parts, [part.outcomes.cost_usd for part in parts]),
        tokens_in=_laid_out(arms, parts, [part.outcomes.tokens_in for part in parts]),
        tokens_out=_laid_out(arms, parts, [part.outcomes.tokens_out for part in parts]),
        phases=tuple(phases),
        channels=(Channel(RECORDED, quality, np.zeros(start, dtype=np.int64)),),
    )


def _laid_out(
    arms: tuple[str, ...], parts: tuple[_Part, ...], matrices: list[NDArray[Number]]
) -> NDArray[Number]:
    """(n, K) by position; 0 where an arm is not on offer."""
    blocks = []
    for part, matrix in zip(parts, matrices, strict=True):
        block = np.zeros((len(part.order), len(arms)), dtype=matrix.dtype)
        columns = [arms.index(arm.name) for arm in part.outcomes.arms]
        block[:, columns] = matrix[part.order]
        blocks.append(block)
    return np.concatenate(blocks)


def _test_rows(folder: Path) -> Rows:
    """Rows of the prompts that its authors measured on."""
    prompts = pq.read_table(folder / "prompts.parquet")
    if "origin_split" not in prompts.column_names:
        raise DatasetError(
            f"{folder / 'prompts.parquet'}: origin_split missing; it tells val prompts from test prompts"
        )
    rows: Rows = np.flatnonzero(np.array(prompts.column("origin_split").to_pylist()) == "test")
    return rows


def _with(world: Dataset, arm: Arm) -> tuple[Arm, ...]:
    return tuple(arm if arm.name == old.name else old for old in world.arms)
