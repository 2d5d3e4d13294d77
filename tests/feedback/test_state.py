import json
import math
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.drift import Detector
from bandit.features import DIMENSION, TAG
from bandit.quality import SharedBaseline
from bandit.statistics import CallStatistics, RatingStatistics
from feedback.cuts import Alarm, Cut
from feedback.records import MalformedError
from feedback.state import AGE_STEPS, HALF_LIFE_S, START, Reader, State, weight_grid

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
        rated=11,
        detectors={("small", "user"): DETECTOR, ("large", "judge:ä"): Detector()},
        alarms=(Alarm("small", "user", "drop", "1790000000000-2:0123456789abcdef"),),
        cuts=(
            Cut((1789999999999, 1), "large", None, 0.02, "drift", 1.78e9, 7, "rise", "user"),
            Cut((1790000000000, 0), None, "user", 0.5, "operator", 1.79e9, 8),
        ),
    )


DETECTOR = Detector(2.0, -0.1, 0.3, (0.1, 1e4), (1 / 3, 0.7))


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
    assert dict(back.detectors) == dict(state.detectors)
    assert (back.rated, back.alarms, back.cuts) == (state.rated, state.alarms, state.cuts)
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
        replace(state, rated=12),
        replace(state, detectors={("small", "user"): DETECTOR._replace(drops=(1 / 3, 0.70001))}),
        replace(state, alarms=()),
        replace(state, cuts=state.cuts[:1]),
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
    for harmed in (data, sealed(b"FLS2" + data + b"1234")):
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
        {"lengths": ["small"]},
        {"workers": [1]},
        {"features": "no hex"},
        {"as_of": "late"},
        {"rated": "many"},
        {"detectors": [["small", "user", 1.0]]},
        {"detectors": [["small", "user", 1.0, 0.0, 0.0, [1.0], [1.0, 2.0]]]},
        {"detectors": [["small", "user", 1.0, 0.0, "x", [1.0, 2.0], [1.0, 2.0]]]},
        {"detectors": [["small", "user", 1.0, 0.0, math.nan, [1.0, 2.0], [1.0, 2.0]]]},
        {"alarms": [["small"]]},
        {"cuts": [[[1], "small", None, 0.02, "drift", 1.0, 7]]},
        {"cuts": [["small"]]},
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


def read(reader: Reader, state: State) -> dict[str, RatingStatistics]:
    return state.on_one_scale(reader)


def test_an_arm_without_new_ratings_reads_as_the_same_object_for_hours() -> None:
    """So what was computed from it (a factorisation, say) may be kept by the object's identity."""
    one = RatingStatistics.empty(1).added(np.ones(1), 1.0, 1.0)
    step_s = HALF_LIFE_S / AGE_STEPS
    state = State(
        b"features", 1, epoch=10, as_of=10.5 * HALF_LIFE_S, ratings={("a", "user"): one, ("b", "user"): one}
    )
    reader = Reader()
    first = read(reader, state)
    more = {**state.ratings, ("b", "user"): one.added(np.ones(1), 0.5, 1.0)}
    second = read(reader, replace(state, ratings=more, as_of=state.as_of + 0.9 * step_s))
    third = read(reader, replace(state, ratings=more, as_of=state.as_of + step_s))
    assert second["a"] is not first["a"]  # as_of had been on a point of the grid exactly
    assert third["a"] is second["a"]
    assert third["b"] is second["b"]
    fourth = read(reader, replace(state, as_of=state.as_of + step_s))
    assert fourth["a"] is third["a"]
    assert fourth["b"] is not third["b"]
    fifth = read(reader, replace(state, as_of=state.as_of + 1.1 * step_s))
    assert fifth["a"] is not fourth["a"]
    assert fifth["a"].n == pytest.approx(fourth["a"].n * 2 ** (-1 / AGE_STEPS), rel=1e-12)


def test_of_several_sources_each_is_read_as_the_anchor_would_have_told_it() -> None:
    """And the very same object again until a source that changes the corrections speaks."""
    x, sums = np.ones(1), dict[tuple[str, str], RatingStatistics]()
    for arm, level in (("a", 0.8), ("b", 0.5)):
        for source, lower in (("user", 0.0), ("judge:j", 0.25)):
            sums[arm, source] = RatingStatistics.empty(1)
            for n in range(200):
                sums[arm, source] = sums[arm, source].added(x, level - lower + 0.1 * (-1) ** n, 1.0)
    state = State(b"features", 1, epoch=10, as_of=10.5 * HALF_LIFE_S, ratings=sums)
    reader = Reader()
    first = state.on_one_scale(reader)
    assert {arm: s.xr[0] / s.weight for arm, s in first.items()} == {
        "a": pytest.approx(0.8, abs=0.02),
        "b": pytest.approx(0.5, abs=0.02),
    }
    assert state.posterior(SharedBaseline(), reader).ratings["a"] == first["a"].weight
    strict = state.on_one_scale(anchor="judge:j")
    assert strict["a"].xr[0] / strict["a"].weight == pytest.approx(0.55, abs=0.02)
    believed = state.posterior(SharedBaseline(anchor="judge:j")).quality.predict(x, ["a", "b"]).mean
    assert believed == pytest.approx([0.55, 0.25], abs=0.03)
    assert state.on_one_scale(reader)["a"] is first["a"]
    more = replace(state, ratings={**sums, ("b", "judge:j"): sums["b", "judge:j"].added(x, 0.25, 1.0)})
    second = more.on_one_scale(reader)
    assert second["a"] is first["a"], "one rating more does not move a correction by a step"
    assert second["b"] is not first["b"]


@given(st.floats(0.0, 2.0**36))
def test_ages_are_counted_back_from_a_point_at_most_a_step_ahead(as_of: float) -> None:
    state = State(b"features", 1, as_of=as_of)
    assert -1e-5 <= state.read_at() - as_of <= HALF_LIFE_S / AGE_STEPS + 1e-5


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(0, 30))
def test_reading_with_and_without_a_memory_gives_the_same_bits(arms: list[str], until: int) -> None:
    reader, state = Reader(), State(b"features", 1, epoch=0, as_of=7.0)
    for number, arm in enumerate(arms):
        seen = state.ratings.get((arm, "user"), RatingStatistics.empty(1))
        state = replace(
            state,
            ratings={**state.ratings, (arm, "user"): seen.added(np.ones(1), 0.5, 1.0)},
            as_of=state.as_of + 3000.0 * (number < until),
        )
        one, other = state.on_one_scale(reader), state.ratings_per_arm()
        assert {a: (s.n, s.rr) for a, s in one.items()} == {a: (s.n, s.rr) for a, s in other.items()}


def test_what_is_believed_of_quality_is_the_same_until_a_rating_a_price_or_the_model_changes() -> None:
    """Calls come in with every tick: a posterior that they do not touch is not made again."""
    one = RatingStatistics.empty(DIMENSION).added(np.ones(DIMENSION), 1.0, 1.0)
    state = State(TAG, DIMENSION, epoch=10, as_of=10.5 * HALF_LIFE_S + 1.0, ratings={("a", "user"): one})
    reader, model = Reader(), SharedBaseline()
    first = state.posterior(model, reader)
    called = replace(state, cursor="1-0:x", calls={"a": CallStatistics(calls=1, tokens_out=9)})
    second = called.posterior(model, reader)
    assert second.quality is first.quality
    assert (second.token, second.cost.tokens_out("a")) != (first.token, first.cost.tokens_out("a"))
    other_model = called.posterior(SharedBaseline(), reader).quality
    rated = replace(state, ratings={("a", "user"): one.added(np.ones(DIMENSION), 0.0, 1.0)})
    gone = replace(state, ratings={})
    priced = replace(state, entry_prices={"a": 2.0})
    others = [changed.posterior(model, reader).quality for changed in (rated, gone, priced)]
    assert len({id(quality) for quality in (first.quality, other_model, *others)}) == 5
    assert (
        other_model.draws(np.ones(DIMENSION), ["a"]).mean
        == first.quality.draws(np.ones(DIMENSION), ["a"]).mean
    )
