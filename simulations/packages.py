"""Linear Thompson sampling as two published packages do it. They come in the extra `bench`; without it they are no choice."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from bandit.types import Vector
from simulations.baselines import EXPECTED_REWARD
from simulations.linear import RIDGE


class PackageMissingError(ValueError):
    """A rival's package is not installed."""


def require(package: str) -> None:
    if find_spec(package) is None:
        raise PackageMissingError(f"{package} is not installed: pip install 'fairlead[bench]'")


class MABWiserLinTS:
    """`mabwiser.mab.MAB` with LearningPolicy.LinTS, fed one reward at a time."""

    def __init__(self, alpha: float, seed: int) -> None:
        require("mabwiser")
        self._alpha, self._seed = alpha, seed
        self._mab: Any = None
        self._fitted = False

    def scores(self, x: Vector, arms: Sequence[str]) -> Vector:
        self._know(arms)
        if not self._fitted:  # the package predicts nothing before its first reward
            return np.zeros(len(arms))
        expected = self._mab.predict_expectations(x[None])
        return np.array([expected[arm] for arm in arms])

    def update(self, arm: str, x: Vector, reward: float) -> None:
        learn = self._mab.partial_fit if self._fitted else self._mab.fit
        learn([arm], [reward - EXPECTED_REWARD], x[None])
        self._fitted = True

    def _know(self, arms: Sequence[str]) -> None:
        from mabwiser.mab import MAB, LearningPolicy  # noqa: PLC0415 - an optional dependency

        if self._mab is None:
            policy = LearningPolicy.LinTS(alpha=self._alpha, l2_lambda=RIDGE)
            self._mab = MAB(list(arms), policy, seed=self._seed)
        for arm in arms:
            if arm not in self._mab.arms:
                self._mab.add_arm(arm)


class BayesianBanditsLinTS:
    """`bayesianbandits.ContextualAgent` with ThompsonSampling over NormalRegressors, ratings' noise v."""

    def __init__(self, v: float, seed: int) -> None:
        require("bayesianbandits")
        self._precision = 1.0 / v**2
        self._rng = np.random.default_rng(seed)
        self._arms: dict[str, Any] = {}
        self._agent: Any = None
        self._offered: tuple[str, ...] = ()

    def scores(self, x: Vector, arms: Sequence[str]) -> Vector:
        self._offer(tuple(arms))
        (pulled,) = self._agent.pull(x[None])
        return np.array([float(arm == pulled) for arm in arms])

    def update(self, arm: str, x: Vector, reward: float) -> None:
        self._arms[arm].update(x[None], np.array([reward - EXPECTED_REWARD]))

    def _offer(self, arms: tuple[str, ...]) -> None:
        """An agent over these arms, each with what it has learned."""
        from bayesianbandits import Arm, NormalRegressor  # noqa: PLC0415 - an optional dependency
        from bayesianbandits.api import ContextualAgent, ThompsonSampling  # noqa: PLC0415

        if arms == self._offered:
            return
        for name in arms:
            if name not in self._arms:
                learner = NormalRegressor(alpha=RIDGE * self._precision, beta=self._precision)
                self._arms[name] = Arm(name, learner=learner)
        offered = [self._arms[name] for name in arms]
        self._agent = ContextualAgent(offered, ThompsonSampling(), random_seed=self._rng)
        self._offered = arms
