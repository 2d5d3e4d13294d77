import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.arms import Arm
from bandit.decide import decide
from bandit.features import DIMENSION, TAG
from bandit.objective import Quality
from bandit.policy import Thompson, Uniform
from bandit.posterior import Posterior
from bandit.quality import SharedBaseline
from bandit.types import Context, Needs
from feedback.records import (
    DECIDED_AT_MAX,
    HEAD,
    X_MAX,
    DecisionPrefix,
    Explanation,
    MalformedError,
    decode_record,
    encode_record,
    policy_tag,
    prefix_bytes,
    prefix_of,
)

NOW = 1_790_000_000.25
FEATURES = st.floats(-X_MAX, X_MAX, width=16)


def prefix(**changed: Any) -> DecisionPrefix:
    given: dict[str, Any] = {
        "arm": "small",
        "x": np.array([1.0, -0.5, 2.0]),
        "decided_at": NOW,
        "propensity": 0.25,
        "features": b"features",
        "policy": b"policy!!",
    }
    return DecisionPrefix(**(given | changed))


def fields(decision: DecisionPrefix) -> list[object]:
    return [getattr(decision, name) for name in DecisionPrefix.__slots__ if name != "x"]


def test_the_head_is_laid_out_as_the_docstring_says() -> None:
    data = prefix(
        attempt=2,
        listed_in_nano_usd=7,
        listed_out_nano_usd_per_token=9,
        quality_mean=0.75,
        quality_sd=0.125,
    ).encode()
    assert HEAD.size == 64
    assert data[:8] == bytes(
        [2, 2, 75, 0, 3, 0, 5, 0]
    )  # version, attempt, 64 + 5 + 2 x 3, d, length of "small"
    assert data[8:24] == struct.pack("<dd", NOW, 0.25)
    assert data[24:56] == b"features" + b"policy!!" + (7).to_bytes(8, "little") + (9).to_bytes(8, "little")
    assert data[56:64] == struct.pack("<ff", 0.75, 0.125)
    assert data[64:] == b"small" + struct.pack("<3e", 1.0, -0.5, 2.0)


@given(
    arm=st.text(max_size=60),
    x=st.lists(FEATURES, min_size=1, max_size=40),
    decided_at=st.floats(0.0, DECIDED_AT_MAX),
    propensity=st.floats(0.0, 1.0, exclude_min=True),
    attempt=st.integers(0, 255),
    listed=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    expected=st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(0, 1e6, width=32)),
)
def test_a_prefix_survives_its_bytes_to_the_last_bit(
    arm: str,
    x: list[float],
    decided_at: float,
    propensity: float,
    attempt: int,
    listed: tuple[int, int],
    expected: tuple[float, float],
) -> None:
    given = prefix(
        arm=arm,
        x=np.array(x),
        decided_at=decided_at,
        propensity=propensity,
        attempt=attempt,
        listed_in_nano_usd=listed[0],
        listed_out_nano_usd_per_token=listed[1],
        quality_mean=expected[0],
        quality_sd=expected[1],
    )
    back = DecisionPrefix.decode(given.encode())
    assert fields(back) == fields(given)
    assert back.x.dtype == np.float64
    assert back.x.tobytes() == given.x.tobytes()


EXPLANATION = Explanation(
    {"candidates": [["small", 0.5, 1.5], ["large", 2.5, 10.0]], "policy": "of\nlines"},
    np.array([1 / 3, 2 / 3]),
    np.array([[0.1, 0.2, 1e-7, np.nan, -np.inf], [1, 2, 3, 4, 5]], np.float32),
)


def test_a_record_says_what_was_decided_on_and_what_it_should_cost() -> None:
    arms = (Arm("small", 0.5, 1.5), Arm("large", 2.5, 10.0))
    context = Context(np.eye(1, DIMENSION)[0], Needs(tokens_in=1000))
    posterior = Posterior.of(SharedBaseline(), {}, {}, d=DIMENSION, token="0-0:")
    decisions = [decide(Uniform(), posterior, context, arms, f"rt-{n}") for n in range(20)]
    decision = next(decision for decision in decisions if decision.arm.name == "large")
    made = prefix_of(decision, decided_at=NOW, policy=b"policy!!", attempt=1)
    back, explanation = decode_record(encode_record(made, EXPLANATION))
    assert (back.arm, back.propensity, back.attempt, back.decided_at) == ("large", 0.5, 1, NOW)
    assert (back.features, back.policy) == (TAG, b"policy!!")
    assert back.x.tobytes() == context.x.tobytes()
    assert back.listed_in_nano_usd == 2_500_000  # 1000 tokens at 2.50 USD per million: 0.0025 USD
    assert back.listed_out_nano_usd_per_token == 10_000  # 10 USD per million tokens
    assert explanation.told == EXPLANATION.told
    assert explanation.probabilities.tobytes() == EXPLANATION.probabilities.tobytes()
    assert explanation.beliefs.tobytes() == EXPLANATION.beliefs.tobytes()
    believed = posterior.quality.draws(context.x, ["large"])
    assert back.quality_mean == np.float32(believed.mean[0])
    assert back.quality_sd == pytest.approx(believed.sd()[0], rel=1e-6)
    assert fields(back) == fields(made)  # what is learned from the decision itself is learned from its bytes


def test_a_record_cut_short_anywhere_is_refused() -> None:
    record = encode_record(prefix(), EXPLANATION)
    decode_record(record)
    for length in range(len(record)):
        with pytest.raises(MalformedError):
            decode_record(record[:length])


def test_a_record_is_known_by_its_lengths_alone() -> None:
    record = encode_record(prefix(), EXPLANATION)
    assert prefix_bytes(record) == prefix().encode()
    assert prefix_bytes(prefix().encode() + b"no json") == prefix().encode()


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, 3),  # a version to come
        (0, 1),  # a version that was
        (2, 74),  # the prefix's length
        (4, 4),  # d
        (6, 4),  # the arm's length
    ],
)
def test_a_head_that_contradicts_itself_is_refused(offset: int, value: int) -> None:
    data = bytearray(encode_record(prefix()))
    data[offset] = value
    with pytest.raises(MalformedError, match="lengths"):
        decode_record(bytes(data))


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf, 64.0625, -100.0])
def test_features_that_are_not_small_numbers_are_refused(x: float) -> None:
    data = prefix(x=np.array([1.0, x])).encode()
    with pytest.raises(MalformedError, match="finite and small"):
        DecisionPrefix.decode(data)


@pytest.mark.parametrize(
    "changed",
    [
        {"decided_at": math.nan},
        {"decided_at": math.inf},
        {"decided_at": -1.0},
        {"decided_at": 1e12},
        {"decided_at": 1e300},
        {"propensity": 0.0},
        {"propensity": -0.1},
        {"propensity": 1.0000001},
        {"propensity": math.nan},
    ],
)
def test_times_and_propensities_that_cannot_be_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(MalformedError, match="out of range"):
        DecisionPrefix.decode(prefix(**changed).encode())


@pytest.mark.parametrize(
    "changed",
    [
        {"quality_mean": math.nan},
        {"quality_mean": -math.inf},
        {"quality_mean": 2e6},
        {"quality_sd": math.nan},
        {"quality_sd": -0.1},
        {"quality_sd": math.inf},
    ],
)
def test_expectations_that_cannot_be_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(MalformedError, match="expected is no number"):
        DecisionPrefix.decode(prefix(**changed).encode())


@pytest.mark.parametrize("d", [0, 1025])
def test_vectors_of_no_or_absurd_length_are_refused(d: int) -> None:
    with pytest.raises(MalformedError):
        DecisionPrefix.decode(prefix(x=np.ones(d)).encode())


def test_a_name_that_is_no_text_is_refused() -> None:
    data = prefix().encode().replace(b"small", b"sm\xffll")
    with pytest.raises(MalformedError, match="UTF-8"):
        DecisionPrefix.decode(data)


def test_nothing_may_follow_a_prefix() -> None:
    with pytest.raises(MalformedError):
        DecisionPrefix.decode(prefix().encode() + b"\0")


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=120).map(lambda rest: b"\x02\x00" + rest)))
def test_arbitrary_bytes_are_refused_and_never_an_accident(data: bytes) -> None:
    for decode in (DecisionPrefix.decode, decode_record, prefix_bytes):
        with pytest.raises(MalformedError):
            decode(data)


@given(st.integers(0, 74), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused_and_never_an_accident(offset: int, value: int) -> None:
    data = bytearray(prefix().encode())
    data[offset] = value
    try:
        decision = DecisionPrefix.decode(bytes(data))
    except MalformedError:
        return
    assert decision.encode() == bytes(data)


def test_a_policys_tag_names_all_its_parameters() -> None:
    tags = {policy_tag(Thompson(Quality(), scale), SharedBaseline()) for scale in (0.3, 0.3, 0.5)}
    assert len(tags) == 2
    assert {len(tag) for tag in tags} == {8}
