import pytest

from feedback.breaker import LIMIT, LONGEST_PAUSE_S, PAUSE_S, Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock, lambda: 1.0)


def opened(breaker: Breaker) -> Breaker:
    for _ in range(LIMIT):
        assert breaker.allows()
        breaker.failed()
    return breaker


def test_failures_open_it_only_if_there_are_so_many_in_a_row(breaker: Breaker) -> None:
    for _ in range(3):
        for _ in range(LIMIT - 1):
            breaker.failed()
        breaker.succeeded()
    assert breaker.allows()
    assert not opened(breaker).allows()
    assert breaker.opened == 1


def test_after_a_pause_one_call_is_let_through_and_its_success_closes_it(
    breaker: Breaker, clock: Clock
) -> None:
    opened(breaker)
    clock.now += PAUSE_S
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.succeeded()
    assert [breaker.allows(), breaker.allows()] == [True, True]


def test_failing_on_it_pauses_longer_and_never_too_long(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    pauses = []
    for _ in range(5):
        begun = clock.now
        while not breaker.allows():
            clock.now += PAUSE_S / 8
        pauses.append(clock.now - begun)
        breaker.failed()
    assert pauses == [PAUSE_S, 2 * PAUSE_S, *[LONGEST_PAUSE_S] * 3]
    assert breaker.opened == 1


def test_a_call_whose_outcome_is_never_told_does_not_close_it_for_ever(
    breaker: Breaker, clock: Clock
) -> None:
    opened(breaker)
    for _ in range(3):
        clock.now += LONGEST_PAUSE_S
        assert breaker.allows()
