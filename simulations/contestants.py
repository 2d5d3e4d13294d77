"""Everybody who plays, by name, with the printed grid of settings that a comparison may choose from.

A builder gets the goal, where it plays and one setting of its grid. Rivals are given their best setting as found on other
pools; the router has one setting, its own.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.arms import Arm
from bandit.prior import QualityPrior
from simulations import baselines
from simulations.baselines import UCB1, EpsilonGreedy, Rival
from simulations.datasets import Dataset
from simulations.learner import Contestant, Learner
from simulations.linear import LinTS, LinUCB
from simulations.metrics import Goal
from simulations.packages import BayesianBanditsLinTS, MABWiserLinTS
from simulations.player import Player
from simulations.stale import ParetoBanditPolicy
from simulations.world import Facts, Space

DISCOUNT: Final = 0.997  # of the discounted LinUCB, per request of any arm


@dataclass(frozen=True, slots=True)
class Pool:
    """Where a contestant plays. dataset: its name. stream: names the order, and all chance derives from it.

    prior: what the router may know beforehand, fitted without this pool; None: nothing. arms: those of the registry.
    """

    dataset: str
    stream: str
    features: Space = field(default_factory=Facts)
    prior: QualityPrior | None = None
    arms: tuple[Arm, ...] = ()

    def seed(self, name: str) -> int:
        return zlib.crc32(f"{name}:{self.dataset}:{self.stream}".encode())

    def rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng(self.seed(name))


Build = Callable[[Goal, Pool, float], Player]
Vectors = Callable[[Dataset], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Entry:
    """build: (goal, pool, setting) -> player. setting: what the numbers of the grid are; "" where there is nothing to
    set. default: the setting where no comparison chooses one. vectors: foreign embeddings of all prompts, where it asks.
    """

    build: Build
    setting: str = ""
    grid: tuple[float, ...] = (0.0,)
    default: float = 0.0
    vectors: Vectors | None = None


def _ours(contestant: Callable[[Goal, Pool, float], Contestant]) -> Build:
    def build(goal: Goal, pool: Pool, setting: float) -> Player:
        return Learner(contestant(goal, pool, setting), pool.features, stream=pool.stream)

    return build


CONTESTANTS: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "router": Entry(
            _ours(lambda goal, pool, _: baselines.router(goal.objective(), pool.prior, pool.arms))
        ),
        "thompson-context-free": Entry(
            _ours(lambda goal, _, scale: baselines.context_free_thompson(goal.objective(), scale)),
            "scale",
            (0.1, 0.3, 1.0),
            0.3,
        ),
        "random": Entry(_ours(lambda _goal, _pool, _setting: baselines.random())),
        "epsilon-greedy": Entry(
            lambda goal, pool, epsilon: Rival(EpsilonGreedy(epsilon, pool.rng("epsilon-greedy")), goal),
            "epsilon",
            (0.01, 0.03, 0.1),
            0.03,
        ),
        "ucb1": Entry(lambda goal, _, alpha: Rival(UCB1(alpha), goal), "alpha", (0.03, 0.1, 0.3, 1.0), 0.1),
        "linucb": Entry(
            lambda goal, pool, alpha: Rival(LinUCB(alpha, pool.features.d), goal),
            "alpha",
            (0.03, 0.1, 0.3, 1.0),
            0.1,
        ),
        "linucb-discounted": Entry(
            lambda goal, pool, alpha: Rival(LinUCB(alpha, pool.features.d, DISCOUNT), goal),
            "alpha",
            (0.003, 0.01, 0.03, 0.1, 0.3),
            0.03,
        ),
        "paretobandit-policy": Entry(
            lambda goal, pool, alpha: Rival(ParetoBanditPolicy(alpha, pool.features.d), goal),
            "alpha",
            (0.003, 0.01, 0.05, 0.2),
            0.05,
        ),
        "lints": Entry(
            lambda goal, pool, v: Rival(LinTS(v, pool.features.d, pool.rng("lints")), goal),
            "v",
            (0.03, 0.1, 0.3),
            0.1,
        ),
        "lints-mabwiser": Entry(
            lambda goal, pool, alpha: Rival(MABWiserLinTS(alpha, pool.seed("mabwiser")), goal),
            "alpha",
            (0.03, 0.1, 0.3),
            0.1,
        ),
        "lints-bayesianbandits": Entry(
            lambda goal, pool, v: Rival(BayesianBanditsLinTS(v, pool.seed("bayesianbandits")), goal),
            "v",
            (0.03, 0.1, 0.3),
            0.1,
        ),
    }
)
