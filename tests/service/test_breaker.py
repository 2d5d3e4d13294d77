"""A breaker over made-up times: what opens it, who may test it, and that it always comes back."""

from hypothesis import given
from hypothesis import strategies as st

from service.breaker import FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker


def opened(at_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed(at_s, probe=breaker.begin(at_s))
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not_let_them_add_up():
    breaker = Breaker()
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.failed(0.0, probe=breaker.begin(0.0))
        assert breaker.allows(0.0)
        breaker.succeeded(probe=breaker.begin(0.0))
    assert not opened().allows(0.0)


def test_two_timeouts_in_a_row_are_enough():
    breaker = Breaker()
    breaker.failed(0.0, probe=False, timeout=True)
    assert breaker.allows(0.0)
    breaker.failed(0.0, probe=False, timeout=True)
    assert not breaker.allows(0.0)


def test_after_its_pause_one_call_at_a_time_may_test_it():
    breaker = opened()
    assert not breaker.allows(FIRST_PAUSE_S - 0.001)
    assert breaker.allows(FIRST_PAUSE_S)
    assert breaker.begin(FIRST_PAUSE_S)
    assert not breaker.allows(FIRST_PAUSE_S + 100)
    assert not breaker.begin(FIRST_PAUSE_S + 100)


def test_a_probe_that_works_closes_it_and_the_next_pause_is_short_again():
    breaker = opened()
    breaker.failed(FIRST_PAUSE_S, probe=breaker.begin(FIRST_PAUSE_S))
    breaker.succeeded(probe=breaker.begin(100.0))
    assert not breaker.is_open
    for _ in range(FAILURES):
        breaker.failed(200.0, probe=breaker.begin(200.0))
    assert breaker.allows(200.0 + FIRST_PAUSE_S)


def test_probes_that_fail_double_the_pause_up_to_the_longest():
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(8):
        start = now
        while not breaker.allows(now):
            now += 0.5
        pauses.append(now - start)
        breaker.failed(now, probe=breaker.begin(now))
    assert pauses[:4] == [2.0, 4.0, 8.0, 16.0]
    assert set(pauses[4:]) == {LONGEST_PAUSE_S}


def test_calls_that_began_before_it_opened_neither_close_nor_prolong_it():
    breaker = opened()
    for _ in range(50):
        breaker.failed(1.0, probe=False)
    assert breaker.allows(FIRST_PAUSE_S)
    breaker.succeeded(probe=False)
    assert breaker.is_open


def test_a_probe_whose_client_left_proves_nothing_and_makes_way_for_the_next():
    breaker = opened()
    breaker.abandoned(probe=breaker.begin(FIRST_PAUSE_S))
    assert breaker.is_open
    assert breaker.begin(FIRST_PAUSE_S)


@given(
    st.lists(st.tuples(st.sampled_from(["ok", "failed", "timeout", "left"]), st.floats(0, 30)), max_size=60)
)
def test_whatever_happens_it_is_tested_again_within_the_longest_pause_and_then_recovers(steps):
    breaker, now = Breaker(), 0.0
    for what, pause in steps:
        now += pause
        if not breaker.allows(now):
            continue
        probe = breaker.begin(now)
        if what == "ok":
            breaker.succeeded(probe=probe)
        elif what == "left":
            breaker.abandoned(probe=probe)
        else:
            breaker.failed(now, probe=probe, timeout=what == "timeout")
    assert breaker.allows(now + LONGEST_PAUSE_S)
    breaker.succeeded(probe=breaker.begin(now + LONGEST_PAUSE_S))
    assert not breaker.is_open


@given(st.lists(st.booleans(), max_size=30))
def test_never_is_more_than_one_probe_out(results):
    breaker, now = opened(), FIRST_PAUSE_S
    for works in results:
        probes = [breaker.begin(now) for _ in range(3)]
        assert sum(probes) <= 1
        if probes[0]:
            if works:
                breaker.succeeded(probe=True)
                return
            breaker.failed(now, probe=True)
        now += LONGEST_PAUSE_S
