"""Several sources on one scale: known kindness, clarity and noise are recovered, and nobody's word is taken for more than it is."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bandit.quality import SharedBaseline
from bandit.sources import Correction, corrections, earlier_self
from bandit.statistics import RatingStatistics
from feedback.state import State

Floats = NDArray[np.float64]
ARMS = ("a", "b", "c", "d")
D = 5
TYPICAL = 0.6


def sums(X: Floats, y: Floats) -> RatingStatistics:
    return RatingStatistics(X.T @ X, X.T @ y, float(len(y)), float(y @ y))


class World:
    """Four arms whose quality is linear in the features, and who rates them how."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.weights = self.rng.normal(0, 0.08, (len(ARMS), D)) + self.rng.normal(0, 0.1, D)
        self.weights[:, 0] = TYPICAL + np.array([0.06, 0.02, -0.02, -0.06])
        self.ratings: dict[tuple[str, str], RatingStatistics] = {}

    def rated(
        self,
        source: str,
        n: int,
        *,
        noise: float,
        kindness: float = 0.0,
        clarity: float = 1.0,
        favours: Sequence[float] = (0, 0, 0, 0),
    ) -> "World":
        """n ratings of each arm."""
        for arm, weights, favour in zip(ARMS, self.weights, favours, strict=True):
            X = np.c_[np.ones(n), self.rng.normal(size=(n, D - 1))]
            heard = TYPICAL + kindness + clarity * (X @ weights + favour - TYPICAL)
            self.ratings[arm, source] = sums(X, heard + self.rng.normal(0, noise, n))
        return self

    def levels(self, corrected: Mapping[tuple[str, str], Correction], *sources: str) -> Floats:
        """(K,) mean rating of each arm by these sources, corrected."""
        told = []
        for arm in ARMS:
            parts = [(corrected.get((arm, s)), self.ratings[arm, s]) for s in sources]
            fused = [correction.of(s) if correction else s for correction, s in parts]
            told.append(sum(s.xr[0] for s in fused) / sum(s.weight for s in fused))
        return np.array(told)


def effect(correction: Correction) -> float:
    """What one of its ratings weighs against one of the anchor's."""
    return correction.weight * correction.clarity**2


@given(
    st.floats(-0.5, 0.5),
    st.floats(0.05, 4.0),
    st.floats(0.1, 16.0),
    st.integers(0, 1000),
)
def test_corrected_sums_are_the_sums_of_corrected_ratings(
    offset: float, clarity: float, weight: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    X, y = np.c_[np.ones(9), rng.normal(size=(9, 2))], rng.random(9)
    told, wanted = Correction(offset, clarity, weight).of(sums(X, y)), sums(X, (y - offset) / clarity)
    counts = weight * clarity**2
    for one, other in ((told.xx, wanted.xx), (told.xr, wanted.xr), (told.rr, wanted.rr)):
        np.testing.assert_allclose(one, counts * np.asarray(other), rtol=1e-9, atol=1e-9)
    assert told.n == 9.0
    assert told.weight == pytest.approx(9.0 * counts)


def test_two_judges_of_known_kindness_clarity_and_noise_are_recovered() -> None:
    told: list[list[float]] = []
    for seed in range(10):
        world = World(seed).rated("user", 300, noise=0.3)
        world.rated("judge:strict", 1000, noise=0.15, kindness=-0.2, clarity=0.5)
        world.rated("judge:kind", 1000, noise=0.3, kindness=0.1)
        k = corrections(world.ratings)
        strict, kind = k["b", "judge:strict"], k["b", "judge:kind"]
        higher = [c.offset + (c.clarity - 1.0) * TYPICAL for c in (strict, kind)]
        told.append([*higher, strict.clarity, kind.clarity, effect(strict), effect(kind)])
        both = world.levels(k, "judge:strict", "judge:kind")
        assert np.abs(both - world.levels(k, "user")).max() < 0.07
    wanted = [-0.2, 0.1, 0.5, 1.0, 1.0, 1.0]
    assert np.abs(np.mean(told, axis=0) - wanted).max() < 0.2, (
        "0.15 of noise at half the clarity is 0.3 at all of it"
    )
    assert np.abs(np.mean(told, axis=0)[:4] - wanted[:4]).max() < 0.07


def test_a_judge_of_pure_noise_weighs_next_to_nothing_once_there_is_an_anchor() -> None:
    for seed in range(10):
        world = World(seed).rated("user", 150, noise=0.3).rated("judge:dice", 2000, noise=0.3, clarity=0.0)
        assert max(effect(c) for c in corrections(world.ratings).values()) < 0.1


def test_a_judge_that_favours_a_model_does_not_change_the_ranking_once_there_is_an_anchor() -> None:
    """The worst arm is favoured by more than what lies between it and the best."""
    favours = (0.0, 0.0, 0.0, 0.2)
    errors = []
    for seed in range(10):
        world = World(seed).rated("user", 300, noise=0.3).rated("judge:kin", 1500, noise=0.2, favours=favours)
        plain = world.levels({}, "user", "judge:kin")
        assert plain.argmax() == 3, "uncorrected, the favourite wins"
        corrected = world.levels(corrections(world.ratings), "user", "judge:kin")
        assert corrected.argmax() != 3
        errors.append(corrected - world.weights[:, 0])
    assert np.abs(np.mean(errors, axis=0)).max() < 0.04


def test_one_source_alone_is_believed_as_it_is() -> None:
    assert corrections({}) == {}
    assert corrections(World(0).rated("judge:only", 50, noise=0.2, kindness=-0.3).ratings) == {}


def test_of_judges_alone_kindness_is_evened_out_and_nothing_else() -> None:
    """One rated mostly the worse models and is kind, the other mostly the better ones: plain sums have it upside down."""
    for seed in range(5):
        world = World(seed)
        world.weights[:, 0] = (0.60, 0.60, 0.68, 0.68)
        world.rated("judge:kind", 300, noise=0.2, kindness=0.2).rated("judge:strict", 300, noise=0.2)
        for arm in ARMS:
            rare = "judge:strict" if arm in "ab" else "judge:kind"
            world.ratings[arm, rare] = world.ratings[arm, rare].times(0.1)
        plain = world.levels({}, "judge:kind", "judge:strict")
        assert plain[:2].min() > plain[2:].max()
        k = corrections(world.ratings)
        fair = world.levels(k, "judge:kind", "judge:strict")
        assert fair[:2].max() < fair[2:].min()
        assert {(c.clarity, c.weight) for c in k.values()} == {(1.0, 1.0)}
        world.ratings["a", "user"] = sums(np.eye(1, D), np.array([0.9]))
        after = world.levels(corrections(world.ratings), "judge:kind", "judge:strict")
        assert np.ptp(after - fair) < 0.02, "one user's first rating turns nothing over"


def test_any_source_may_be_the_anchor() -> None:
    world = World(0).rated("user", 500, noise=0.3).rated("judge:tests", 500, noise=0.3, kindness=-0.2)
    k = corrections(world.ratings, anchor="judge:tests")
    assert {source for _, source in k} == {"user"}
    assert np.abs(world.levels(k, "user") - world.levels({}, "judge:tests")).max() < 0.05


def drifted(world: World, source: str) -> World:
    """What it has said so far is its earlier self's."""
    for arm in ARMS:
        told = world.ratings.pop((arm, source))
        world.ratings[arm, earlier_self(source)] = told
        world.ratings[arm, source] = told.times(0.0)
    return world


@pytest.mark.parametrize("source", ["user", "judge:only"])
@pytest.mark.parametrize("given", [0, 1, 5, 40, 2000])
def test_a_source_that_drifted_keeps_its_order_of_the_models_and_moves_to_its_new_scale(
    source: str, given: int
) -> None:
    world = drifted(World(5).rated(source, 1000, noise=0.2), source)
    before = world.levels({}, earlier_self(source))
    if given:
        world.rated(source, given, noise=0.2, kindness=-0.3)
    k = corrections(world.ratings)
    after = world.levels(k, earlier_self(source), source) if given else world.levels(k, earlier_self(source))
    assert np.ptp(after - before) < 0.03
    moved = (after - before).mean()
    assert moved == pytest.approx({0: 0.0, 40: -0.3, 2000: -0.3}.get(given, moved), abs=0.05)


@pytest.mark.parametrize("given", [0, 1, 5, 40])
def test_what_users_knew_of_a_judges_favourite_outlives_their_drift(given: int) -> None:
    for seed in range(5):
        world = World(seed).rated("user", 400, noise=0.3)
        world.rated("judge:kin", 1500, noise=0.2, favours=(0, 0, 0, 0.2))
        before = world.levels(corrections(world.ratings), "judge:kin")
        drifted(world, "user")
        if given:
            world.rated("user", given, noise=0.3, kindness=-0.2)
        after = world.levels(corrections(world.ratings), "judge:kin")
        assert np.ptp(after - before) < 0.05


def test_the_first_words_of_an_anchor_change_little_between_the_models() -> None:
    """What all models have in common may move; a judge's order of them stands until there is more to hold it to."""
    for seed in range(10):
        world = World(seed).rated("judge:a", 1000, noise=0.2)
        before = world.levels({}, "judge:a")
        world.rated("user", 2, noise=0.3)
        moved = world.levels(corrections(world.ratings), "judge:a") - before
        assert np.ptp(moved) < 0.08


@given(
    st.permutations([(arm, source) for arm in ARMS for source in ("user", "judge:a")]),
    st.sampled_from([1e-9, 3.0]),
)
def test_neither_order_nor_unit_of_the_sums_matters(order: list[tuple[str, str]], unit: float) -> None:
    world = World(3).rated("user", 40, noise=0.3).rated("judge:a", 90, noise=0.1, kindness=0.1, clarity=0.7)
    scaled = {key: world.ratings[key].times(unit) for key in order}
    assert corrections(scaled, unit) == corrections(world.ratings)


def test_an_arm_that_the_anchor_never_rated_is_corrected_as_the_others_are() -> None:
    world = World(1).rated("user", 400, noise=0.2).rated("judge:a", 400, noise=0.2, kindness=-0.2)
    del world.ratings["c", "user"]
    k = corrections(world.ratings)
    assert k["c", "judge:a"].offset == pytest.approx(k["a", "judge:a"].offset, abs=0.05)
    assert np.abs(world.levels(k, "judge:a") - world.levels({}, "judge:a") - 0.2).max() < 0.05


def test_users_who_agree_with_a_judge_about_one_model_move_none_of_the_others() -> None:
    """They rated its best alone: that tells nothing of how it sees the rest, however much worse it finds them."""
    for seed in range(10):
        world = World(seed)
        world.weights[:, 0] = (0.8, 0.5, 0.5, 0.5)
        world.rated("user", 200, noise=0.2).rated("judge:a", 500, noise=0.2)
        for arm in ARMS[1:]:
            del world.ratings[arm, "user"]
        moved = world.levels(corrections(world.ratings), "judge:a") - world.levels({}, "judge:a")
        assert np.abs(moved).max() < 0.08


def test_few_ratings_with_many_features_say_little_of_how_clearly_a_judge_sees() -> None:
    """Fitted to noise, what the anchor thinks would seem to be nothing that the judge has heard of."""
    clarity, noise = [], np.zeros(2)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        levels, slopes = 0.65 + rng.normal(0, 0.05, 8), np.r_[0.0, rng.normal(0, 0.03, 40)]
        ratings, plain = {}, []
        for k, level in enumerate(levels):
            X = np.c_[np.ones(50), rng.normal(size=(50, 40))]
            heard = (rng.random(50) < level + X @ slopes).astype(float)
            ratings[str(k), "user"] = sums(X[:5], heard[:5])
            ratings[str(k), "judge:same"] = sums(X, heard)
            plain.append(heard.mean())
        corrected = corrections(ratings)
        clarity.append(corrected["0", "judge:same"].clarity)
        told = [corrected[key].of(s) for key, s in ratings.items() if key[1] != "user"]
        errors = np.array([[s.xr[0] / s.weight for s in told], plain]) - levels
        noise += (errors - errors.mean(axis=1, keepdims=True)).var(axis=1)
    assert np.mean(clarity) == pytest.approx(1.0, abs=0.12)
    assert noise[0] < 1.3 * noise[1], "not much further from the truth than believing the judge blindly"


SOURCES = ("user", "judge:a", "judge:b", earlier_self("user"), earlier_self("judge:a"))


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(ARMS), st.sampled_from(SOURCES)),
        st.tuples(st.sampled_from([1, 2, 3, 100]), st.sampled_from([0.0, -1e-17, 1e-17, 1e-9, 1.0, 300.0])),
    ),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 99),
)
def test_whatever_is_left_of_whose_ratings_there_is_a_posterior(
    told: Mapping[tuple[str, str], tuple[int, float]], spread: float, seed: int
) -> None:
    """Withdrawn to the last bit or nearly, faded, all alike, by one source or several, of some arms or all."""
    rng, ratings = np.random.default_rng(seed), {}
    for key, (n, left) in told.items():
        X = np.c_[np.ones(n), rng.normal(size=(n, D - 1))]
        ratings[key] = sums(X, np.clip(0.5 + rng.normal(0, spread, n), 0, 1)).times(left)
    state = State(b"features", D, epoch=0, ratings=ratings)
    believed = state.posterior(SharedBaseline()).quality.predict(np.ones(D), ARMS)
    assert np.isfinite(believed.mean).all()
    assert (np.linalg.eigvalsh(believed.covariance) > -1e-9).all()


def test_what_was_withdrawn_corrects_nothing() -> None:
    """Sums that are nothing but rounding."""
    world = World(2).rated("user", 50, noise=0.2).rated("judge:a", 50, noise=0.2)
    left = {key: s.times(1e-16) if key == ("a", "judge:a") else s for key, s in world.ratings.items()}
    assert {("b", "judge:a"), ("c", "judge:a"), ("d", "judge:a")} == corrections(left).keys()
    assert (
        corrections({key: s.times(1e-16) if key[1] == "user" else s for key, s in world.ratings.items()})
        == {}
    )
    assert corrections({key: s.times(-1e-16) for key, s in world.ratings.items()}) == {}
