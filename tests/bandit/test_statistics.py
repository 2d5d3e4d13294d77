"""Sums of ratings and calls: any order, any split, and back again."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.statistics import CallStatistics, RatingStatistics

D = 3
PATIENT = settings(deadline=None)  # no test fails for time

features = st.lists(st.floats(-4, 4, width=16), min_size=D - 1, max_size=D - 1).map(lambda x: np.r_[1.0, x])
ratings = st.tuples(features, st.floats(0, 1), st.floats(2**-6, 4))
calls = st.lists(st.integers(-(10**15), 10**15), min_size=12, max_size=12).map(lambda n: CallStatistics(*n))


def summed(rows):
    total = RatingStatistics.empty(D)
    for x, r, w in rows:
        total = total.added(x, r, w)
    return total


def assert_close(left, right, *, size=1.0):
    """Equal but for rounding; size: the largest amount that was ever in the sums."""
    for name in ("xx", "xr", "n", "rr"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=1e-12, atol=1e-12 * size)


def assert_identical(left, right):
    for name in ("xx", "xr", "n", "rr"):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name


def test_one_rating_by_hand():
    s = RatingStatistics.empty(2).added(np.array([1.0, 3.0]), 0.5, 2.0)
    assert s.xx.tolist() == [[2.0, 6.0], [6.0, 18.0]]
    assert s.xr.tolist() == [1.0, 3.0]
    assert (s.n, s.rr) == (2.0, 0.5)


@PATIENT
@given(rows=st.lists(ratings, max_size=20))
def test_sums_are_the_weighted_sums_of_the_definition(rows):
    s = summed(rows)
    for i in range(D):
        exact = sum((Fraction(w) * Fraction(x[i]) * Fraction(r) for x, r, w in rows), Fraction(0))
        assert s.xr[i] == pytest.approx(float(exact), rel=1e-12, abs=1e-12)
        for j in range(D):
            exact = sum((Fraction(w) * Fraction(x[i]) * Fraction(x[j]) for x, _, w in rows), Fraction(0))
            assert s.xx[i, j] == pytest.approx(float(exact), rel=1e-12, abs=1e-11)
    assert s.n == pytest.approx(sum(w for _, _, w in rows))
    assert s.rr == pytest.approx(sum(w * r * r for _, r, w in rows))
    assert np.array_equal(s.xx, s.xx.T)  # to the last bit: a snapshot keeps one triangle and mirrors it


@PATIENT
@given(rows=st.lists(ratings, max_size=20), seed=st.integers(0, 2**32 - 1))
def test_order_changes_nothing_beyond_rounding(rows, seed):
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    assert_close(summed(rows), summed(shuffled), size=1000)


@PATIENT
@given(rows=st.lists(ratings, max_size=20), cut=st.integers(0, 20))
def test_two_sets_merge_by_addition(rows, cut):
    assert_close(summed(rows[:cut]) + summed(rows[cut:]), summed(rows), size=1000)


@PATIENT
@given(
    before=st.lists(ratings, max_size=5),
    row=ratings,
    new=st.floats(0, 1),
    after=st.lists(ratings, max_size=5),
)
def test_a_revised_rating_counts_as_if_it_had_come_with_its_new_value(before, row, new, after):
    x, old, weight = row
    revised = summed([*before, row, *after]).revised(x, new, old=old, weight=weight)
    assert_close(revised, summed([*before, (x, new, weight), *after]), size=100)


@PATIENT
@given(rows=st.lists(ratings, max_size=5), row=ratings)
def test_a_rating_added_with_its_negative_weight_is_withdrawn(rows, row):
    x, r, weight = row
    assert_close(summed([*rows, row]).added(x, r, -weight), summed(rows), size=100)


@PATIENT
@given(rows=st.lists(ratings, max_size=10), exponent=st.integers(-300, 300))
def test_scaling_by_a_power_of_two_is_exact(rows, exponent):
    rows = [(x.round(2), round(r, 3), w) for x, r, w in rows]  # far from the smallest floats
    s = summed(rows)
    assert_identical(s.scaled(exponent).scaled(-exponent), s)
    assert s.scaled(exponent).n == s.n * 2.0**exponent


@PATIENT
@given(rows=st.lists(ratings, max_size=8), more=ratings, exponent=st.integers(-40, 40))
def test_scaling_commutes_with_adding_to_the_last_bit(rows, more, exponent):
    """Forgetting rests on it: replicas that rescale at different moments must agree in every bit."""
    x, r, w = more[0].round(2), round(more[1], 3), more[2]
    s = summed(rows)
    assert_identical(
        s.added(x, r, w).scaled(exponent), s.scaled(exponent).added(x, r, float(np.ldexp(w, exponent)))
    )


@PATIENT
@given(rows=st.lists(ratings, min_size=1, max_size=8), factor=st.floats(0, 8))
def test_times_weighs_every_rating_alike(rows, factor):
    assert_close(summed(rows).times(factor), summed([(x, r, w * factor) for x, r, w in rows]), size=1000)


def test_nothing_is_changed_in_place():
    """A reader in another task may hold an instance while ratings arrive."""
    x = np.array([1.0, 0.5, -2.0])
    s = RatingStatistics.empty(D).added(x, 0.25, 1.0)
    for array in (s.xx, s.xr, x):
        array.flags.writeable = False  # an operation in place would raise
    kept = RatingStatistics(s.xx.copy(), s.xr.copy(), s.n, s.rr)
    s.added(x, 0.9, 2.0)
    s.revised(x, 0.5, old=0.25, weight=1.0)
    s.scaled(3)
    s.times(0.5)
    s + s
    assert_identical(s, kept)


@given(a=calls, b=calls, c=calls)
def test_call_sums_are_exact_in_any_order(a, b, c):
    assert (a + b) + c == c + (b + a)
    assert a + CallStatistics() == a
    assert (a + b).tokens_out == a.tokens_out + b.tokens_out


def test_each_count_of_calls_is_summed_under_its_own_name():
    one = CallStatistics.of_numbers([2**i for i in range(len(CallStatistics.__slots__))])
    two = one + one
    assert two.numbers() == [2 ** (i + 1) for i in range(len(CallStatistics.__slots__))]
    assert one + CallStatistics() == CallStatistics() + one == one
    assert two.listed_out_nano_usd_per_token == 2 * one.listed_out_nano_usd_per_token
