"""What is forgotten of an arm that dropped, held against the schedule by hand and against folding one by one."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.drift import Direction
from feedback.alarms import answers
from feedback.cuts import DRIFT, JUDGE, RECOVERY, Cut
from feedback.events import RATED, WITHDRAWN, encode_reset, feedback_tail
from feedback.learn import fold, fold_all
from feedback.records import DecisionPrefix
from feedback.recovery import FADING_RATINGS, HALF, HALVING_RATINGS, halved, next_halving
from feedback.state import State

TAG, NOW = b"features", 1.79e9
Log = list[tuple[str, bytes]]


def cut(
    arm: str | None,
    rated: int,
    direction: Direction | None,
    cause: str = DRIFT,
    *,
    source: str | None = None,
    by: str = "user",
) -> Cut:
    return Cut((rated, 0), arm, source, 0.01, cause, NOW, rated, direction, direction and by)


DROPPED = (cut("small", 250, "drop"),)


def test_half_of_an_arm_that_dropped_is_forgotten_every_so_many_ratings_and_not_for_ever() -> None:
    faded = [rated for rated in range(250, 3000) if halved(DROPPED, rated)]
    assert faded == [250 + n * HALVING_RATINGS for n in range(1, FADING_RATINGS // HALVING_RATINGS + 1)]


def test_a_rise_ends_it_and_another_drop_begins_it_anew() -> None:
    risen = (*DROPPED, cut("small", 420, "rise"))
    assert not any(halved(risen, rated) for rated in range(420, 3000))
    again = (*risen, cut("small", 500, "drop"), cut("large", 530, "drop"))
    assert [halved(again, rated) for rated in (500, 550, 600, 630, 650)] == [[], [], ["small"], ["large"], []]


def test_an_operators_reset_of_the_arm_ends_it_and_another_arms_does_not() -> None:
    reset = cut("small", 400, None, "operator")
    assert not any(halved((*DROPPED, reset), rated) for rated in range(400, 3000))
    assert halved((*DROPPED, replace(reset, arm="large")), 450) == ["small"]
    assert halved((reset, *DROPPED), 350) == ["small"]


def test_finding_that_its_source_drifted_ends_it_and_another_sources_drift_does_not() -> None:
    judge = cut(None, 270, "drop", JUDGE, source="user")
    assert not any(halved((*DROPPED, judge), rated) for rated in range(270, 3000))
    assert halved((*DROPPED, replace(judge, source="judge:a")), 350) == ["small"]


def test_its_own_halvings_do_not_end_it() -> None:
    assert halved((*DROPPED, cut("small", 350, None, RECOVERY)), 450) == ["small"]


@pytest.mark.parametrize(
    "other", [cut("small", 250, None, "operator"), cut(None, 250, "drop", JUDGE), cut("small", 250, "rise")]
)
def test_after_no_other_reset_does_an_arm_fade(other: Cut) -> None:
    assert not any(halved((other,), rated) for rated in range(250, 3000))
    assert next_halving((other,), 250) == math.inf


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["small", "large"]), st.integers(0, 500), st.sampled_from(["drop", "rise", None])
        ),
        max_size=5,
    ),
    st.integers(500, 2000),
)
def test_the_next_fading_is_the_first_there_is(
    drops: list[tuple[str, int, Direction | None]], rated: int
) -> None:
    cuts = [cut(*drop) for drop in sorted(drops, key=lambda drop: drop[1])]
    first = next((n for n in range(rated, rated + 2 * FADING_RATINGS) if halved(cuts, n)), math.inf)
    assert next_halving(cuts, rated) == first


def rating(n: int, arm: str, quality: float, *, withdrawn: bool = False) -> bytes:
    """The n-th entry's rating, or its withdrawal. Qualities are eighths, which every width of float holds."""
    x = np.r_[1.0, np.random.default_rng(n).integers(-4, 5, 2) / 4]
    prefix = DecisionPrefix(arm, x, NOW, 0.5, TAG, b"policy!!", quality_mean=0.75, quality_sd=0.0625).encode()
    if withdrawn:
        return bytes([RATED, WITHDRAWN]) + prefix + feedback_tail(None, quality, "user", f"{n}-0")
    return bytes([RATED, 0]) + prefix + feedback_tail(quality, None, "user")


def revised(n: int, arm: str, old: float, quality: float) -> bytes:
    prefix = rating(n, arm, old)[2 : -len(feedback_tail(old, None, "user"))]
    return bytes([RATED, 1]) + prefix + feedback_tail(quality, old, "user", f"{n}-0")


def around(mean: float, n: int) -> float:
    """The quality of the n-th entry."""
    return float(np.clip(np.round(8 * np.random.default_rng(n).normal(mean, 0.15)) / 8, 0, 1))


def ratings(arm: str, mean: float, numbers: Iterable[int]) -> Log:
    return [(f"{n}-0:", rating(n, arm, around(mean, n))) for n in numbers]


def folded(state: State, entries: Log) -> State:
    for token, entry in entries:
        state = fold(state, token, entry)
    return state


@pytest.fixture(scope="module")
def dropped() -> State:
    """A state in which "small" dropped and was reset."""
    state = folded(State(TAG, 3), ratings("large", 0.7, range(1, 41)) + ratings("small", 0.7, range(41, 300)))
    for token, entry in ratings("small", 0.3, range(300, 500)):
        state = fold(state, token, entry)
        if state.alarms:
            return fold(state, "500-0:", encode_reset(answers(state)[0]))
    raise AssertionError("no alarm")


def test_only_the_arm_that_dropped_fades_and_before_the_rating_that_follows(dropped: State) -> None:
    waited = fold_all(dropped, ratings("large", 0.7, range(501, 501 + HALVING_RATINGS)))
    assert waited.ratings["small", "user"] is dropped.ratings["small", "user"]
    assert waited.cuts == dropped.cuts
    after = fold_all(waited, ratings("large", 0.7, [1000]))
    assert after.ratings["small", "user"].n == HALF * waited.ratings["small", "user"].n
    assert after.ratings["large", "user"].n / waited.ratings["large", "user"].n == pytest.approx(141 / 140)
    assert (after.cuts[-1].cause, after.cuts[-1].position) == (RECOVERY, (1000, 0))
    assert after.cuts[-1].told() == ("50 % is kept of what was learned of small by all sources (recovery)")


@pytest.mark.parametrize("withdrawn", [False, True])
def test_only_a_new_rating_halves(dropped: State, withdrawn: bool) -> None:
    """A changed one is none: the same rating would halve it again."""
    due = folded(dropped, ratings("small", 0.3, range(501, 501 + HALVING_RATINGS)))
    kept = due.ratings["small", "user"].n
    if withdrawn:
        after = fold(due, "900-0:", rating(550, "small", around(0.3, 550), withdrawn=True))
    else:
        after = fold(due, "900-0:", revised(550, "small", around(0.3, 550), 1.0))
    assert after.cuts == due.cuts
    one = (kept - dropped.ratings["small", "user"].n) / HALVING_RATINGS
    assert after.ratings["small", "user"].n == pytest.approx(kept - one if withdrawn else kept)


def test_its_detector_watches_on(dropped: State) -> None:
    state = folded(dropped, ratings("small", 0.3, range(501, 601)))
    (token, entry), *_ = ratings("small", 0.3, [601])
    before, after = state.detectors["small", "user"], fold(state, token, entry).detectors["small", "user"]
    assert after == before.after(around(0.3, 601), 0.75, 0.0625)


@given(st.lists(st.integers(0, 260), max_size=5))
def test_wherever_batches_are_cut_it_fades_at_the_same_entry(dropped: State, edges: list[int]) -> None:
    entries = ratings("small", 0.3, range(501, 631)) + ratings("large", 0.7, range(631, 761))
    state = dropped
    for first, last in pairwise([0, *sorted(edges), len(entries)]):
        state = fold_all(state, entries[first:last])
    assert state.digest() == folded(dropped, entries).digest()
    assert len(state.cuts) == len(dropped.cuts) + 2


@pytest.mark.parametrize("n", [501, 550, 600, 601, 602, 700, 701, 702])
def test_what_is_withdrawn_after_fading_is_as_if_never_given(dropped: State, n: int) -> None:
    """Also of the very ratings before which the arm faded, the 601st entry and the 701st."""
    before, after = ratings("small", 0.3, range(501, n)), ratings("small", 0.3, range(n + 1, 801))
    mine, anothers = ratings("small", 0.3, [n]), ratings("large", 0.3, [n])
    state = folded(dropped, [*before, *mine, *after])
    assert len(state.cuts) == len(dropped.cuts) + 2
    left = fold(state, "900-0:", rating(n, "small", around(0.3, n), withdrawn=True)).ratings["small", "user"]
    wanted = folded(dropped, [*before, *anothers, *after]).ratings["small", "user"]
    for one, other in ((left.xx, wanted.xx), (left.xr, wanted.xr), (left.n, wanted.n), (left.rr, wanted.rr)):
        assert np.abs(np.subtract(one, other)).max() <= 1e-12 * wanted.n
