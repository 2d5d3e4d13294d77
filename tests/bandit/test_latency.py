"""Latency: chances of being late against simulation, forgetting by age, and that somebody is always left to answer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.arms import Arm
from bandit.latency import (
    HALF_LIFE_S,
    PSEUDO_CALLS,
    USUAL_VARIANCE,
    LatencyModel,
    LatencyStatistics,
    LogTimes,
    in_time,
)

ARMS = tuple(Arm(name, 1.0, 1.0) for name in ("a", "b", "c"))
one_call = st.builds(
    LatencyStatistics.of_call,
    first_byte_s=st.floats(0, 30),
    latency_s=st.floats(30, 300),
    tokens_out=st.none() | st.integers(0, 4000),
    at=st.floats(1.7e9, 1.7e9 + 5000),
)


def calls(count, first_byte_s, s_per_token, *, at=0.0, tokens=100, rng=None, sd=0.4):
    rng = rng or np.random.default_rng(0)
    total = LatencyStatistics()
    for _ in range(count):
        first = first_byte_s * math.exp(sd * rng.normal())
        rest = tokens * s_per_token * math.exp(sd * rng.normal())
        total += LatencyStatistics.of_call(
            first_byte_s=first, latency_s=first + rest, tokens_out=tokens, at=at
        )
    return total


@pytest.mark.parametrize("limit_s", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("tokens", [10.0, 100.0, 300.0])
def test_the_chance_of_being_late_is_that_of_simulated_answers(limit_s, tokens):
    model = LatencyModel.fit({"a": calls(20_000, 1.0, 0.02)}, now=0.0)
    rng = np.random.default_rng(1)
    first, pace = np.exp(0.4 * rng.normal(size=(2, 200_000)))
    simulated = (1.0 * first + tokens * 0.02 * pace > limit_s).mean()
    assert model.late(["a"], np.array([tokens]), limit_s)[0] == pytest.approx(simulated, abs=0.012)


def test_one_lognormal_alone_is_exact():
    """No tokens: P(f > limit) = 1 - Phi((log limit - m) / s), with the sums' own m and s."""
    seen = calls(500, 1.5, 0.02)
    model = LatencyModel.fit({"a": seen}, now=0.0)
    mean, variance = model.logs[0, :2]
    z = (math.log(2.0) - mean) / math.sqrt(variance)
    assert model.late(["a"], np.zeros(1), 2.0)[0] == pytest.approx(
        0.5 * math.erfc(z / math.sqrt(2)), abs=1e-12
    )


@settings(deadline=None)
@given(seen=st.lists(one_call, min_size=2, max_size=8), order=st.randoms(use_true_random=False))
def test_calls_count_by_their_age_in_whatever_order_they_come(seen, order):
    at = max(call.at for call in seen)
    weights = [2.0 ** ((call.at - at) / HALF_LIFE_S) for call in seen]
    shuffled = list(seen)
    order.shuffle(shuffled)
    total = sum(shuffled, start=LatencyStatistics())
    assert total.at == at
    assert total.first_byte.n == pytest.approx(sum(weights), rel=1e-9)
    expected = sum(w * call.first_byte.total for w, call in zip(weights, seen, strict=True))
    assert total.first_byte.total == pytest.approx(expected, rel=1e-9, abs=1e-9)
    paced = sum(w * call.per_token.n for w, call in zip(weights, seen, strict=True))
    assert total.per_token.n == pytest.approx(paced, rel=1e-9, abs=1e-12)


def test_an_arm_that_became_slow_is_known_as_slow_within_a_few_half_lives():
    before = calls(200, 0.5, 0.005)
    after = before + calls(200, 8.0, 0.05, at=4 * HALF_LIFE_S)
    now = 4 * HALF_LIFE_S
    assert LatencyModel.fit({"a": before}, now=0.0).late(["a"], np.array([100.0]), 3.0)[0] < 0.01
    assert LatencyModel.fit({"a": after}, now=now).late(["a"], np.array([100.0]), 3.0)[0] > 0.9


def test_an_arm_that_was_slow_long_ago_is_trusted_like_one_that_was_never_called():
    slow, now = calls(50, 60.0, 0.5), 40 * HALF_LIFE_S
    others = calls(200, 0.5, 0.005, at=now)
    late = LatencyModel.fit({"a": slow, "b": others}, now=now).late(["a", "never"], np.full(2, 50.0), 5.0)
    assert late[0] == pytest.approx(late[1], abs=1e-6)


def test_before_any_call_what_is_usual_is_believed():
    model = LatencyModel.fit({}, now=0.0)
    np.testing.assert_allclose(
        model.logs, [[0.0, USUAL_VARIANCE, math.log(0.02), USUAL_VARIANCE]], atol=1e-12
    )


def test_an_answer_that_came_whole_tells_nothing_of_its_pace():
    whole = LatencyStatistics.of_call(first_byte_s=2.0, latency_s=2.0, tokens_out=50, at=0.0)
    assert whole.per_token == LogTimes()
    assert whole.first_byte.total == pytest.approx(math.log(2.0))


def test_longer_answers_are_likelier_to_be_late():
    model = LatencyModel.fit({"a": calls(int(PSEUDO_CALLS), 1.0, 0.02)}, now=0.0)
    late = model.late(["a"] * 50, np.linspace(0, 2000, 50), 5.0)
    assert (np.diff(late) > 0).all()
    assert ((late >= 0) & (late <= 1)).all()


def test_arms_that_are_too_likely_late_are_out_and_say_why():
    able, out = in_time(ARMS, np.array([0.05, 0.1, 0.4]), limit_s=2.0, confidence=0.9)
    assert [arm.name for arm in able] == ["a", "b"]
    assert [(e.arm, e.code) for e in out] == [("c", "latency")]
    assert out[0].reason == "takes longer than 2 s with probability 0.40; at most 0.10 is allowed"


def test_where_all_are_too_likely_late_the_likeliest_to_be_in_time_stays():
    able, out = in_time(ARMS, np.array([0.9, 0.7, 0.8]), limit_s=2.0, confidence=0.95)
    assert [arm.name for arm in able] == ["b"]
    assert {e.arm for e in out} == {"a", "c"}


def test_no_arms_are_none_in_time():
    assert in_time((), np.zeros(0), limit_s=1.0, confidence=0.5) == ((), ())
