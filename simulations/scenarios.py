"""What may happen to a route, each as a small declaration: how a recorded world is changed, and whom to watch.

A scenario is a list of changes (simulations.changes), each about an arm that is named by its role and a phase that is
named in the scenario. The phases are thirds of the stream, or as many equal parts as there are names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulations.changes import (
    Change,
    Drop,
    Judge,
    Late,
    Missing,
    Newcomer,
    Poison,
    Price,
    Shift,
    Stage,
    Stricter,
    Withdraw,
    cast_of,
    in_phases,
)
from simulations.datasets import Dataset
from simulations.metrics import Goal
from simulations.world import World, recorded_world


@dataclass(frozen=True, slots=True)
class Scenario:
    """says: one sentence. watched: roles of the arms whose shares matter."""

    name: str
    says: str
    phases: tuple[str, ...] = ("whole",)
    changes: tuple[Change, ...] = ()
    watched: tuple[str, ...] = ("best",)


_ALL: Final = (
    Scenario("stationary", "Nothing changes."),
    Scenario(
        "price-cut",
        "The dearest model's price falls to a fiftieth, then returns.",
        ("before", "cut", "returned"),
        (Price("dearest", factor=0.02, phase="cut"),),
        ("dearest",),
    ),
    Scenario(
        "regression",
        "The best model silently becomes 0.2 worse, then recovers.",
        ("before", "worse", "recovered"),
        (Drop("best", by=0.2, phase="worse"),),
    ),
    Scenario(
        "newcomer-good-cheap",
        "A new model joins: as good as the best there is, at the cheapest one's cost.",
        ("before", "joined", "settled"),
        (Newcomer("finest", cost_of="cheapest", since="joined"),),
        ("finest",),
    ),
    Scenario(
        "newcomer-good-dear",
        "A new model joins: as good as the best there is, at three times the dearest one's cost.",
        ("before", "joined", "settled"),
        (Newcomer("finest", cost_of="dearest", times=3.0, since="joined"),),
        ("finest",),
    ),
    Scenario(
        "newcomer-bad",
        "A new model joins: cheap, and 0.25 worse than the best there is.",
        ("before", "joined", "settled"),
        (Newcomer("finest", cost_of="cheapest", worse_by=0.25, since="joined"),),
        ("finest",),
    ),
    Scenario(
        "withdrawal",
        "The best model cannot be called for a while.",
        ("before", "withdrawn", "back"),
        (Withdraw("best", phase="withdrawn"),),
    ),
    Scenario(
        "task-shift", "The traffic changes from some kinds of task to others.", ("some", "others"), (Shift(),)
    ),
    Scenario("delay-1", "Every rating comes one request late.", changes=(Late(1),)),
    Scenario("delay-100", "Every rating comes 100 requests late.", changes=(Late(100),)),
    Scenario("delay-1000", "Every rating comes 1,000 requests late.", changes=(Late(1000),)),
    Scenario("missing-90", "Nine answers of ten are never rated.", changes=(Missing(0.9),)),
    Scenario(
        "judge-biased",
        "A judge rates all answers and those of the second best model 0.15 too high; users rate one of ten truly.",
        changes=(Judge(bias=0.15, favourite="second", users=0.1),),
        watched=("best", "second"),
    ),
    Scenario(
        "judge-noisy",
        "A judge rates all answers with an error of 0.3; users rate one of ten truly.",
        changes=(Judge(noise=0.3, users=0.1),),
    ),
    Scenario(
        "judge-stricter",
        "A judge rates all answers, and in the end every model's 0.2 lower; users rate one of ten truly.",
        ("before", "stricter"),
        (Judge(users=0.1), Stricter(by=0.2, phase="stricter")),
    ),
    Scenario(
        "poisoned",
        "One rater of five gives the worst model 1 and all others 0.",
        changes=(Poison("worst", share=0.2),),
        watched=("best", "worst"),
    ),
)
SCENARIOS: Final[Mapping[str, Scenario]] = MappingProxyType({scenario.name: scenario for scenario in _ALL})


def world_of(scenario: Scenario, dataset: Dataset, goal: Goal, seed: int) -> World:
    """The world of one seed: an order of the dataset's requests, changed as the scenario says."""
    rng = np.random.default_rng([seed, 4])
    rows: NDArray[np.int64] = rng.permutation(len(dataset.prompts))
    world = in_phases(recorded_world(dataset, rows), scenario.phases)
    stage = Stage(dataset, cast_of(dataset, goal), rng)
    for change in scenario.changes:
        world = change.apply(world, stage)
    return world


def watched_arms(scenario: Scenario, dataset: Dataset, goal: Goal) -> dict[str, int]:
    """Role -> column of each arm whose share matters."""
    cast = cast_of(dataset, goal)
    return {role: cast[role] for role in scenario.watched}
