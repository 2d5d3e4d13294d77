"""What an arm cost when it was first rated is remembered for the prior; what it costs later changes no belief in its quality."""

from dataclasses import replace

import numpy as np
import pytest

from bandit.arms import Arm
from bandit.prior import QualityPrior
from bandit.quality import SharedBaseline, SharedBaselinePosterior
from feedback.events import RATED, feedback_tail
from feedback.learn import fold
from feedback.records import DecisionPrefix
from feedback.state import State

TAG = b"features"
NOW = 1.79e9
D = 2
PRIOR = replace(QualityPrior.flat(D), price_slope=np.array([0.2, 0.05]))
ARMS = (Arm("small", 0.1, 0.4), Arm("large", 2.0, 10.0))


def rating(arm: Arm, quality: float, *, at: float = 0.0, source: str = "user") -> bytes:
    """Of a decision that was made at the arm's present price."""
    price = round(arm.price_usd_per_mtok_out * 1e3)
    prefix = DecisionPrefix(
        arm.name,
        np.array([1.0, 0.5]),
        NOW + at,
        0.5,
        TAG,
        b"policy!!",
        listed_out_nano_usd_per_token=price,
    )
    return bytes([RATED, False]) + prefix.encode() + feedback_tail(quality, None, source, "")


def folded(*entries: bytes, state: State | None = None) -> State:
    state = state or State(TAG, D)
    for number, entry in enumerate(entries, state.events + 1):
        state = fold(state, f"{number}-0:", entry)
    return state


def believed(state: State, arms: tuple[Arm, ...]) -> SharedBaselinePosterior:
    posterior = state.posterior(SharedBaseline(PRIOR, arms)).quality
    assert isinstance(posterior, SharedBaselinePosterior)
    return posterior


def bits(posterior: SharedBaselinePosterior) -> list[bytes]:
    names = ("weights", "precisions", "shared_factor", "typical_x")
    return [getattr(posterior, name).tobytes() for name in names] + [
        np.float64(posterior.noise_variance).tobytes()
    ]


def priced(usd: float) -> tuple[Arm, ...]:
    """The route after `large` was given another price."""
    return ARMS[0], replace(ARMS[1], price_usd_per_mtok_out=usd)


def test_the_price_of_the_first_rating_stays_whatever_comes_later() -> None:
    small, large = ARMS
    state = folded(rating(large, 0.9), rating(small, 0.5))
    assert state.entry_prices == {"large": pytest.approx(10.0), "small": pytest.approx(0.4)}
    cheaper = rating(priced(1.0)[1], 0.8, at=60.0, source="judge:a")
    later = folded(cheaper, state=state)
    assert later.events == state.events + 1
    assert later.entry_prices == state.entry_prices


@pytest.mark.parametrize("usd", [0.01, 1.0, 0.0, 700.0])
def test_a_price_change_after_the_first_rating_changes_no_bit_of_what_is_believed(usd: float) -> None:
    state = folded(*(rating(arm, q) for arm, q in zip(ARMS, (0.4, 0.9), strict=True)))
    assert bits(believed(state, priced(usd))) == bits(believed(state, ARMS))


def test_before_the_first_rating_a_price_does_move_the_belief() -> None:
    state = folded(rating(ARMS[0], 0.5))
    x, names = np.array([1.0, 0.0]), ["small", "large"]
    now, dear = (believed(state, arms).predict(x, names).mean for arms in (ARMS, priced(100.0)))
    # ten times the price is one slope of 0.2 more beside the other arm, whose rating both then share
    assert (dear[1] - dear[0]) - (now[1] - now[0]) > 0.1


def test_what_a_model_cost_is_known_even_when_it_has_left_the_route() -> None:
    state = folded(*(rating(arm, q) for arm, q in zip(ARMS, (0.4, 0.9), strict=True)))
    x = np.array([1.0, 0.0])
    here = believed(state, ARMS).predict(x, ["small", "large"]).mean
    gone = believed(state, ARMS[:1]).predict(x, ["small", "large"]).mean
    np.testing.assert_allclose(gone, here, rtol=1e-12)


def test_a_snapshot_keeps_the_prices() -> None:
    state = folded(rating(ARMS[1], 0.9), rating(ARMS[0], 0.5))
    again = State.from_bytes(state.to_bytes())
    assert again.entry_prices == state.entry_prices
    assert bits(believed(again, priced(3.0))) == bits(believed(state, ARMS))


def test_another_order_of_the_same_prices_gives_the_same_belief() -> None:
    """Only which price came first for each arm counts."""
    first = folded(rating(ARMS[0], 0.5), rating(ARMS[1], 0.9))
    second = folded(rating(ARMS[1], 0.9), rating(ARMS[0], 0.5))
    x = np.array([1.0, 0.5])
    np.testing.assert_allclose(
        believed(first, ARMS).predict(x, ["small", "large"]).mean,
        believed(second, ARMS).predict(x, ["small", "large"]).mean,
        rtol=1e-12,
    )
