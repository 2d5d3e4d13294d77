import json
import math
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.features import DIMENSION, TAG
from bandit.quality import SharedBaseline
from bandit.statistics import CallStatistics, RatingStatistics
from feedback.records import MalformedError
from feedback.state import HALF_LIFE_S, START, State, weight_grid

DAY_S = 86_400.0


def full() -> State:
    """A state with something in every field, small enough to be harmed at every bit."""
    one = RatingStatistics.empty(2).added(np.array([1.0, -0.5]), 0.7, 1.3)
    two = RatingStatistics.empty(2).added(np.array([1.0, 0.1]), 0.1, 0.9)
    return State(
        b"features",
        2,
        cursor="1790000000000-3:0123456789abcdef",
        events=12,
        skipped=1,
        epoch=690,
        as_of=1_790_000_000.1,
        ratings={("small", "user"): one, ("large", "judge:ä"): two},
        calls={"small": CallStatistics(calls=3, tokens_out=2**70, reported_nano_usd=-5)},
        workers={"w-2": 7, "w-1": 0},
    )


def sealed(data: bytes) -> bytes:
    """The same bytes with a checksum that fits them."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def with_header(state: State, **changed: object) -> bytes:
    data = state.to_bytes()
    (length,) = struct.unpack_from("<I", data, 4)
    header = json.dumps(json.loads(data[8 : 8 + length]) | changed).encode()
    return sealed(data[:4] + struct.pack("<I", len(header)) + header + data[8 + length :])


@pytest.mark.parametrize("state", [State(TAG, DIMENSION), full()], ids=["empty", "full"])
def test_a_state_survives_its_bytes_to_the_last_bit(state: State) -> None:
    back = State.from_bytes(state.to_bytes())
    assert back.to_bytes() == state.to_bytes()
    assert back.digest() == state.digest()
    assert (back.cursor, back.events, back.skipped) == (state.cursor, state.events, state.skipped)
    assert (back.epoch, back.as_of, back.features, back.d) == (
        state.epoch,
        state.as_of,
        state.features,
        state.d,
    )
    assert dict(back.calls) == dict(state.calls)
    assert list(back.workers.items()) == list(state.workers.items())
    for key, statistics in state.ratings.items():
        assert back.ratings[key].xx.tobytes() == statistics.xx.tobytes()
        assert back.ratings[key].xr.tobytes() == statistics.xr.tobytes()
        assert (back.ratings[key].n, back.ratings[key].rr) == (statistics.n, statistics.rr)


def test_a_digest_tells_states_apart_by_everything_they_hold() -> None:
    state = full()
    others = [
        replace(state, cursor=START),
        replace(state, events=13),
        replace(state, skipped=2),
        replace(state, epoch=691),
        replace(state, as_of=math.nextafter(state.as_of, math.inf)),
        replace(state, calls={}),
        replace(state, workers={}),
        replace(
            state,
            ratings={key: replace(s, n=math.nextafter(s.n, math.inf)) for key, s in state.ratings.items()},
        ),
    ]
    assert len({state.digest(), *(other.digest() for other in others)}) == 1 + len(others)


def test_a_snapshot_cut_short_anywhere_is_refused() -> None:
    data = full().to_bytes()
    for length in range(len(data)):
        with pytest.raises(MalformedError):
            State.from_bytes(data[:length])


def test_a_snapshot_with_any_bit_flipped_is_refused() -> None:
    data = full().to_bytes()
    for bit in range(8 * len(data)):
        harmed = bytearray(data)
        harmed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedError):
            State.from_bytes(bytes(harmed))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_snapshot_even_with_a_good_checksum(data: bytes) -> None:
    for harmed in (data, sealed(b"FLS1" + data + b"1234")):
        with pytest.raises(MalformedError):
            State.from_bytes(harmed)


@pytest.mark.parametrize(
    "changed",
    [
        {"half_life_s": 1.0},
        {"d": 3},
        {"d": None},
        {"ratings": [["small", "user"]]},
        {"ratings": ["small", "large"]},
        {"calls": []},
        {"calls": {"small": [0] * (len(CallStatistics.__slots__) + 1)}},
        {"workers": [1]},
        {"features": "no hex"},
        {"as_of": "late"},
    ],
)
def test_a_header_that_does_not_fit_is_refused_with_a_good_checksum_too(changed: dict[str, object]) -> None:
    State.from_bytes(with_header(full()))
    with pytest.raises(MalformedError):
        State.from_bytes(with_header(full(), **changed))


def test_a_snapshot_of_another_half_life_is_refused_by_that_name() -> None:
    with pytest.raises(MalformedError, match="half-life"):
        State.from_bytes(with_header(full(), half_life_s=HALF_LIFE_S / 2))


def test_sums_that_are_not_finite_are_refused() -> None:
    harmed = replace(full(), ratings={("small", "user"): replace(RatingStatistics.empty(2), n=math.inf)})
    with pytest.raises(MalformedError, match="finite"):
        State.from_bytes(harmed.to_bytes())


@given(st.floats(0.0, 2.0**36))
def test_the_weight_of_a_time_is_its_power_of_two_on_the_grid(decided_at: float) -> None:
    k, factor = weight_grid(decided_at)
    assert 1.0 <= factor <= 2.0
    assert k + math.log2(factor) == pytest.approx(decided_at / HALF_LIFE_S, abs=1e-9, rel=1e-15)


def test_a_rating_of_one_half_life_ago_weighs_half() -> None:
    recent = RatingStatistics.empty(1).added(np.ones(1), 1.0, 2.0)  # one epoch after the epoch: 2^1
    old = RatingStatistics.empty(1).added(np.ones(1), 0.0, 1.0)
    state = State(
        b"features",
        1,
        epoch=10,
        as_of=11 * HALF_LIFE_S,
        ratings={("a", "user"): recent, ("a", "judge"): old, ("b", "user"): old},
    )
    per_arm = state.ratings_per_arm()
    assert per_arm["a"].n == 1.5
    assert per_arm["a"].xr[0] == 1.0
    assert per_arm["b"].n == 0.5


def test_a_posterior_names_the_position_it_was_made_from() -> None:
    state = replace(State(TAG, DIMENSION), cursor="12-0:ab")
    assert state.posterior(SharedBaseline()).token == "12-0:ab"
