"""Lengths of answers: exact sums, the regression by another way, and shapes that average one."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.arms import Arm
from bandit.cost import CostModel
from bandit.features import DIMENSION, NAMES
from bandit.lengths import (
    GRID,
    LARGEST,
    LOG_SHAPE_MAX,
    TYPICAL_TOKENS,
    Lengths,
    LengthSample,
    variances,
)
from bandit.statistics import CallStatistics
from bandit.types import Needs

D = 4
PATIENT = settings(deadline=None)  # no test fails for time

features = st.lists(st.floats(-4, 4, width=16), min_size=D - 1, max_size=D - 1).map(lambda x: np.r_[1.0, x])
answers = st.lists(st.tuples(features, st.integers(0, 10**6)), min_size=1, max_size=30)


def sample(rows):
    xs, tokens = zip(*rows, strict=True) if rows else ((), ())
    return LengthSample.of(xs, tokens)


def assert_identical(one, other):
    for name in ("xx", "xr", "n", "rr"):
        assert np.array(getattr(one, name)).tobytes() == np.array(getattr(other, name)).tobytes()


def drawn(rng, n, weights, *, noise=0.0):
    """n requests and how long one arm's answers to them are."""
    X = np.c_[np.ones(n), rng.normal(size=(n, D - 1)).astype(np.float16).astype(float)]
    tokens = np.exp(X @ weights + noise * rng.normal(size=n)).round().astype(int)
    return list(zip(X, tokens.tolist(), strict=True))


@PATIENT
@given(answers, st.lists(st.integers(0, 30), max_size=4), st.randoms(use_true_random=False))
def test_sums_are_the_same_to_the_bit_however_answers_are_grouped_and_ordered(rows, cuts, chance):
    whole = sample(rows).sums(D)
    chance.shuffle(rows)
    edges = sorted({0, *(min(cut, len(rows)) for cut in cuts), len(rows)})
    parts = [sample(rows[a:b]).sums(D) for a, b in pairwise(edges)]
    assert_identical(sum(parts[1:], start=parts[0]), whole)
    assert_identical(sum(map(sample, ([row] for row in rows)), start=sample([])).sums(D), whole)


@given(answers)
def test_sums_are_those_of_the_answers(rows):
    s = sample(rows).sums(D)
    X = np.array([x for x, _ in rows])
    y = np.array([math.log(max(t, 1)) for _, t in rows])
    near = {"rtol": 1e-3, "atol": 16.0 * (1 + len(rows)) / GRID}
    np.testing.assert_allclose(s.xx, X.T @ X, **near)
    np.testing.assert_allclose(s.xr, y @ X, **near)
    assert (s.n, s.rr) == (len(rows), pytest.approx(y @ y, rel=1e-3, abs=near["atol"]))


ROW = np.ones(D)


@pytest.mark.parametrize(
    "wrong",
    [
        LengthSample(b"", ()),
        LengthSample(b"odd", (1,)),
        sample([(np.ones(D + 1), 10)]),
        sample([(np.r_[1.0, math.nan, 0.0, 0.0], 10)]),
        sample([(np.r_[1.0, math.inf, 0.0, 0.0], 10)]),
        sample([(np.r_[1.0, 2 * LARGEST, 0.0, 0.0], 10)]),
        sample([(ROW, 10), (np.zeros(D), 10)]),
        sample([(np.r_[1e-4, 1.0, 1.0, 1.0], 10)]),
    ],
)
def test_rows_that_are_no_requests_features_say_nothing(wrong):
    assert sample([(ROW, 10)]).sums(D) is not None
    assert wrong.sums(D) is None


def test_the_first_of_a_sample():
    whole = sample([(np.r_[1.0, z, 0.0, 0.0], 10 * z) for z in range(4)])
    for n in range(6):
        assert whole.first(n) == sample([(np.r_[1.0, z, 0.0, 0.0], 10 * z) for z in range(min(n, 4))])


def test_weights_are_those_of_one_big_regression():
    """Shared and own weights side by side, solved at once; noise does not enter what is expected."""
    rng = np.random.default_rng(0)
    rows = {"a": drawn(rng, 40, np.array([5.0, 1.0, 0.0, 0.5])), "b": drawn(rng, 7, np.array([6.0, 1, 1, 0]))}
    sums = {arm: sample(told).sums(D) for arm, told in rows.items()}
    shared, own = variances(D)
    before = np.r_[1 / shared, np.tile(1 / own, 2)]
    P, b = np.diag(before), np.zeros(3 * D)
    for k, arm in enumerate("ab"):
        at = [*range(D), *range(D * (k + 1), D * (k + 2))]
        P[np.ix_(at, at)] += np.tile(sums[arm].xx, (2, 2))
        b[at] += np.tile(sums[arm].xr - math.log(TYPICAL_TOKENS) * sums[arm].xx[0], 2)
    solved = np.linalg.solve(P, b)
    for row, (k, own_part) in enumerate([(1, 1), (2, 1), (0, 0)]):  # the last is any other arm's
        expected = solved[:D] + own_part * solved[D * k : D * (k + 1)]
        np.testing.assert_allclose(Lengths.fit(sums, "ab").weights[row, 1:], expected[1:], rtol=1e-9)


def test_what_is_believed_of_a_slope_hangs_on_what_its_feature_says():
    for part in variances(DIMENSION):
        before = dict(zip(NAMES, part, strict=True))
        assert before["bias"] > before["task-0"] == before["task-31"] > before["length"] == before["images"]
        assert before["images"] > before["words-0"] == before["words-15"]
    more, known = variances(DIMENSION + 2)[0], variances(DIMENSION)[0]
    assert more.tolist() == [*known, *[known[NAMES.index("words-0")]] * 2]


def test_a_shape_averages_one_over_the_arms_own_answers_and_tells_long_from_short():
    rng = np.random.default_rng(1)
    weights = np.array([5.0, 0.7, -0.4, 0.0])
    rows = drawn(rng, 3000, weights, noise=0.5)
    lengths = Lengths.fit({"a": sample(rows).sums(D)}, ["a"])
    shapes = np.array([lengths.shapes(x)[0] for x, _ in rows])
    assert shapes.mean() == pytest.approx(1.0, abs=0.03)
    told = np.array([tokens for _, tokens in rows])
    assert np.corrcoef(np.log(shapes), np.log(told))[0, 1] > 0.8


def test_what_all_arms_have_in_common_is_expected_of_a_new_one():
    rng = np.random.default_rng(2)
    weights = np.array([5.0, 1.0, 0.0, 0.0])
    sums = {arm: sample(drawn(rng, 200, weights, noise=0.3)).sums(D) for arm in ("a", "b", "c")}
    shape = [Lengths.fit(sums, ["new"]).shapes(np.r_[1.0, z, 0.0, 0.0])[0] for z in (-1.0, 0.0, 1.0)]
    assert shape[0] < 0.6 * shape[1] < 0.4 * shape[2]


def test_no_shape_is_beyond_its_bounds():
    rows = drawn(np.random.default_rng(3), 500, np.array([5.0, 3.0, 0.0, 0.0]))
    lengths = Lengths.fit({"a": sample(rows).sums(D)}, ["a"])
    for z in (-4.0, 4.0):
        assert abs(math.log(lengths.shapes(np.r_[1.0, z, 0.0, 0.0])[0])) <= LOG_SHAPE_MAX + 1e-12


def test_an_arm_that_was_told_of_nothing_has_answers_of_the_usual_length():
    assert Lengths.fit({}, ["a", "b"]).shapes(np.ones(D)).tolist() == [1.0, 1.0, 1.0]


def test_costs_follow_the_length_that_a_request_calls_for():
    rows = drawn(np.random.default_rng(4), 2000, np.array([5.0, 1.0, 0.0, 0.0]))
    calls = CallStatistics(
        calls=len(rows),
        tokens_in=len(rows) * 10,
        tokens_in_estimated=len(rows) * 10,
        tokens_out=sum(t for _, t in rows),
    )
    model, arm = CostModel.fit({"a": calls}, {"a": sample(rows).sums(D)}), Arm("a", 0.0, 10.0)
    for z in (-1.0, 0.0, 1.0):
        expected = model.expected_usd([arm], Needs(10), np.r_[1.0, z, 0.0, 0.0])[0]
        assert expected == pytest.approx(math.exp(5.0 + z) * 10e-6, rel=0.1)
    assert model.expected_usd([arm], Needs(10))[0] == pytest.approx(calls.tokens_out / 2000 * 10e-6, rel=0.01)
