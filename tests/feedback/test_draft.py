"""Folding many entries at once, held to folding them one by one: the same bits, wherever batches are cut."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bandit.statistics import CallStatistics
from feedback.events import RATED, WITHDRAWN, Called, Reset, encode_called, encode_reset, feedback_tail
from feedback.learn import fold, fold_all
from feedback.records import DecisionPrefix
from feedback.state import HALF_LIFE_S, State

TAG, D, NOW = b"features", 5, 1.79e9


def rating(n, *, quality, arm="small", source="user", sd=0.05, at=NOW, old=None, change=None):
    x = np.r_[1.0, np.random.default_rng(n).normal(size=D - 1)].astype(np.float16).astype(np.float64)
    prefix = DecisionPrefix(arm, x, at, 0.5, TAG, b"policy!!", quality_mean=0.7, quality_sd=sd).encode()
    change = int(old is not None) if change is None else change
    return bytes([RATED, change]) + prefix + feedback_tail(quality, old, source, "1-0" if change else "")


ratings = st.builds(
    rating,
    st.integers(0, 5),
    quality=st.floats(0, 1, width=32),
    arm=st.sampled_from(["small", "large"]),
    source=st.sampled_from(["user", "judge:a"]),
    sd=st.sampled_from([0.0, 0.05, 0.5]),
    at=st.sampled_from([NOW, NOW - 86_400.0, NOW + 70 * HALF_LIFE_S]),
)
others = st.sampled_from(
    [
        b"",
        b"\xff nothing of ours",
        rating(1, quality=0.2, old=0.9),
        rating(2, quality=0.9, old=0.9, change=WITHDRAWN),
        encode_reset(Reset("small", None, 0.5, "operator", NOW)),
        encode_called(Called("w", 1, {"small": CallStatistics(calls=1, tokens_out=5)})),
    ]
)
logs = st.lists(ratings | ratings | ratings | others, max_size=40)


def numbered(entries):
    return [(f"{n}-0:", entry) for n, entry in enumerate(entries, 1)]


def one_by_one(entries):
    state = State(TAG, D)
    for token, entry in entries:
        state = fold(state, token, entry)
    return state


@given(logs, st.lists(st.integers(0, 40), max_size=4))
def test_wherever_batches_are_cut_the_state_is_the_same_to_the_last_bit(log, cuts):
    entries, state = numbered(log), State(TAG, D)
    edges = [0, *sorted(cuts), len(entries)]
    for first, last in pairwise(edges):
        state = fold_all(state, entries[first:last])
    assert state.digest() == one_by_one(entries).digest()


def test_a_stream_with_a_drop_raises_its_alarm_at_the_same_entry():
    rng = np.random.default_rng(1)
    qualities = [*rng.normal(0.7, 0.2, 300), *rng.normal(0.3, 0.2, 100)]
    entries = numbered(rating(n, quality=float(np.clip(q, 0, 1))) for n, q in enumerate(qualities))
    state = fold_all(State(TAG, D), entries)
    (alarm,) = state.alarms
    assert alarm == one_by_one(entries).alarms[0]
    assert state.digest() == one_by_one(entries).digest()


def test_the_state_that_a_batch_began_with_is_left_alone():
    before = one_by_one(numbered([rating(n, quality=0.5) for n in range(3)]))
    kept = before.to_bytes()
    after = fold_all(before, [(f"{n}-0:", rating(n, quality=0.9)) for n in range(4, 9)])
    assert before.to_bytes() == kept
    assert (after.rated, after.cursor) == (8, "8-0:")


def test_a_batch_of_nothing_changes_nothing():
    state = one_by_one(numbered([rating(0, quality=0.5)]))
    assert fold_all(state, []) is state
