"""The record of a decision, as compact bytes: a prefix that is all a rating needs to be learned, then an explanation.

    prefix   64-byte head | arm name (UTF-8) | x as d float16        copied unchanged into the log when a rating arrives
    rest     a line of JSON: candidates with their prices, exclusions with their codes, the policy, the log position;
             then of K candidates: probabilities as K float64 | beliefs as K x 5 float32

The head is little-endian: version u8, attempt u8, prefix length u16, d u16, arm length u16, decided_at f64 (Unix
seconds), propensity f64, features tag 8 bytes, policy tag 8 bytes, what the registry said of the call's price:
listed_in_nano_usd u64 for the prompt and listed_out_nano_usd_per_token u64, and what rating was expected: quality_mean f32
and quality_sd f32 (how unsure that expectation was, the sd of the posterior's 64 draws of it, the noise of a rating left out;
0 where nothing was expected).
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from bandit.decide import Decision
from bandit.features import TAG
from bandit.noise import TABLE_VERSION
from bandit.types import Vector

VERSION: Final = 2
HEAD: Final = struct.Struct("<BBHHHdd8s8sQQff")
D_MAX: Final = 1024
X_MAX: Final = 64.0  # |x| above this is no feature of ours
EXPECTED_MAX: Final = 1e6  # nor is this a quality that anybody expected
BELIEFS: Final = (
    "quality_mean",
    "quality_sd",
    "cost_usd",
    "latency_s",
    "utility",
)  # NaN where nothing is known
NO_EXPLANATION: Final = b"{}"  # what stands for the rest of a record whose prefix alone is known
DECIDED_AT_MAX: Final = 2.0**36  # the year 4147: a later time is no clock's, and its weight would overflow


class MalformedError(ValueError):
    """Bytes that are no record or event of ours."""


@dataclass(frozen=True, slots=True, eq=False)
class DecisionPrefix:
    """What learning needs to know of a decision. Units as in the module's docstring; quality_mean and quality_sd are
    already rounded to float32.
    """

    arm: str
    x: Vector  # (d,)
    decided_at: float
    propensity: float
    features: bytes
    policy: bytes
    attempt: int = 0
    listed_in_nano_usd: int = 0
    listed_out_nano_usd_per_token: int = 0
    quality_mean: float = 0.0
    quality_sd: float = 0.0

    def encode(self) -> bytes:
        arm = self.arm.encode()
        length = HEAD.size + len(arm) + 2 * len(self.x)
        head = HEAD.pack(
            VERSION,
            self.attempt,
            length,
            len(self.x),
            len(arm),
            self.decided_at,
            self.propensity,
            self.features,
            self.policy,
            self.listed_in_nano_usd,
            self.listed_out_nano_usd_per_token,
            self.quality_mean,
            self.quality_sd,
        )
        return head + arm + self.x.astype("<f2").tobytes()

    @classmethod
    def decode(cls, data: bytes) -> "DecisionPrefix":
        """Raises MalformedError unless `data` is exactly one prefix with finite features."""
        if len(data) < HEAD.size:
            raise MalformedError(f"{len(data)} bytes are too few for a decision")
        version, attempt, length, d, arm_length, *rest = HEAD.unpack_from(data)
        if version != VERSION or not length == HEAD.size + arm_length + 2 * d == len(data):
            raise MalformedError("the lengths in a decision's head do not fit its bytes")
        decided_at, propensity, features, policy, listed_in, listed_out, mean, sd = rest
        x = np.frombuffer(data, "<f2", d, HEAD.size + arm_length).astype(np.float64)
        if not (1 <= d <= D_MAX and np.maximum.reduce(np.abs(x)) <= X_MAX):  # NaN is no less than anything
            raise MalformedError("a decision's features are not finite and small")
        if not (0.0 <= decided_at <= DECIDED_AT_MAX and 0.0 < propensity <= 1.0):
            raise MalformedError("a decision's time or propensity is out of range")
        if not (abs(mean) <= EXPECTED_MAX and 0.0 <= sd <= EXPECTED_MAX):
            raise MalformedError("what rating a decision expected is no number")
        arm = _text(data[HEAD.size : HEAD.size + arm_length])
        return cls(arm, x, decided_at, propensity, features, policy, attempt, listed_in, listed_out, mean, sd)


def prefix_of(
    decision: Decision, *, decided_at: float, policy: bytes, features: bytes = TAG, attempt: int = 0
) -> DecisionPrefix:
    """decided_at: Unix seconds; policy: 8-byte tag of the policy and quality model that decided; features: 8-byte tag of
    the version of the decision's vector.
    """
    arm, needs = decision.arm, decision.context.needs
    k = decision.chosen
    return DecisionPrefix(
        arm=arm.name,
        x=decision.context.x,
        decided_at=decided_at,
        propensity=decision.propensity,
        features=features,
        policy=policy,
        attempt=attempt,
        listed_in_nano_usd=round(needs.tokens_in * arm.price_usd_per_mtok_in * 1e3),
        listed_out_nano_usd_per_token=round(arm.price_usd_per_mtok_out * 1e3),
        quality_mean=float(np.float32(decision.quality_mean[k])),
        quality_sd=float(np.float32(decision.quality_sd[k])),
    )


def policy_tag(*parts: object) -> bytes:
    """8 bytes that name a policy with all its parameters; frozen dataclasses print them all."""
    return hashlib.blake2b(repr((TABLE_VERSION, *parts)).encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """told: what JSON can say, with `candidates`, a list of K, wherever there are numbers of them. probabilities (K,);
    beliefs (K, 5): columns as BELIEFS.
    """

    told: Mapping[str, Any]
    probabilities: Vector
    beliefs: NDArray[np.float32]

    def encode(self) -> bytes:
        numbers = self.probabilities.astype("<f8").tobytes() + self.beliefs.astype("<f4").tobytes()
        return orjson.dumps(self.told, option=orjson.OPT_APPEND_NEWLINE) + numbers

    @classmethod
    def decode(cls, data: bytes) -> "Explanation":
        """Raises MalformedError."""
        line, _, numbers = data.partition(b"\n")
        try:
            told = orjson.loads(line)
            K = len(told.get("candidates", ()))
        except (orjson.JSONDecodeError, AttributeError, TypeError) as error:
            raise MalformedError("a decision's explanation is no JSON") from error
        if len(numbers) != K * (8 + 4 * len(BELIEFS)):
            raise MalformedError("a decision has not as many numbers as candidates")
        probabilities = np.frombuffer(numbers, "<f8", K).astype(np.float64)
        beliefs = np.frombuffer(numbers, "<f4", K * len(BELIEFS), 8 * K).astype(np.float32)
        return cls(told, probabilities, beliefs.reshape(K, len(BELIEFS)))


def encode_record(prefix: DecisionPrefix, explanation: Explanation | None = None) -> bytes:
    """Without an explanation: all that learning needs, and no more."""
    return prefix.encode() + (NO_EXPLANATION if explanation is None else explanation.encode())


def decode_record(data: bytes) -> tuple[DecisionPrefix, Explanation]:
    """Raises MalformedError."""
    prefix = prefix_bytes(data)
    return DecisionPrefix.decode(prefix), Explanation.decode(data[len(prefix) :])


def prefix_bytes(record: bytes) -> bytes:
    """A record's prefix, read no further than its lengths: all that a store asks of it. Raises MalformedError."""
    if len(record) < HEAD.size:
        raise MalformedError(f"{len(record)} bytes are too few for a decision")
    version, _, length, d, arm_length, *_ = HEAD.unpack_from(record)
    if version != VERSION or length != HEAD.size + arm_length + 2 * d or len(record) < length:
        raise MalformedError("the lengths in a decision's head do not fit its bytes")
    return record[:length]


def without_explanation(record: bytes) -> bytes:
    """All that learning needs of it. Raises MalformedError."""
    return prefix_bytes(record) + NO_EXPLANATION


def is_explained(record: bytes) -> bool:
    """Raises MalformedError."""
    return len(record) > len(without_explanation(record))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MalformedError("an arm's name is no UTF-8") from error
