from hypothesis import given
from hypothesis import strategies as st

from service.outliers import (
    CALLS_MIN,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    NOTHING,
    WINDOW_CALLS,
    WINDOW_S,
    Record,
    Tally,
    is_outlier,
)

tallies = st.integers(0, 1000).flatmap(lambda n: st.builds(Tally, st.just(n), st.integers(0, n)))


def test_three_failures_in_ten_beside_none_in_ten_stand_out():
    assert is_outlier(Tally(10, 3), Tally(10, 0))
    assert not is_outlier(Tally(10, 1), Tally(10, 0))


def test_who_fails_as_often_as_the_others_is_no_outlier():
    assert not is_outlier(Tally(100, 50), Tally(100, 50))
    assert not is_outlier(Tally(100, 59), Tally(100, 20))
    assert is_outlier(Tally(100, 60), Tally(100, 20))


@given(tallies, tallies)
def test_few_calls_say_nothing(place, others):
    if place.calls < CALLS_MIN or others.calls < CALLS_MIN:
        assert not is_outlier(place, others)


@given(tallies, tallies)
def test_of_two_places_never_both_stand_out(one, other):
    assert not (is_outlier(one, other) and is_outlier(other, one))


def test_calls_count_for_one_window_to_two():
    record = Record()
    record.add(0.0, failed=True)
    assert record.tally(WINDOW_S - 0.1) == Tally(1, 1)
    record.add(WINDOW_S, failed=False)
    assert record.tally(WINDOW_S + 1) == Tally(2, 1)
    assert record.tally(2 * WINDOW_S) == Tally(1, 0)
    assert record.tally(10 * WINDOW_S) == NOTHING


def test_a_long_good_record_does_not_hide_what_fails_now():
    busy = Record()
    for _ in range(1000):
        busy.add(0.0, failed=False)
    for n in range(WINDOW_CALLS):
        busy.add(0.1, failed=n % 3 == 0)
    assert is_outlier(busy.tally(0.1), Tally(100, 0))


def test_who_is_left_out_again_soon_is_left_out_longer_and_forgiven_after_good_times():
    record, now, pauses = Record(), 0.0, []
    for _ in range(4):
        record.leave_out(now)
        start = now
        while record.is_out(now):
            now += 0.5
        pauses.append(now - start)
    assert pauses == [FIRST_PAUSE_S, 10.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    record.leave_out(now + 1000)
    assert not record.is_out(now + 1000 + FIRST_PAUSE_S)


def test_what_was_counted_is_forgotten_once_it_was_acted_on():
    record = Record()
    for _ in range(20):
        record.add(0.0, failed=True)
    record.leave_out(0.0)
    assert record.tally(0.0) == NOTHING
