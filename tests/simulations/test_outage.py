"""An outage through a real gateway, in short: hardly anybody sees an error, and no rating is lost or made up."""

from simulations.datasets import WHEEL, load
from simulations.outage import FLAKY, FROZEN, Account, Seen, account, back_s, share, told


def test_hardly_anybody_sees_an_error_and_every_rating_is_learned_once():
    """A model's own error may reach a client where no further call is to be had; the gateway itself fails on nobody."""
    found = account(load(WHEEL), 2.0, 5.0, 1.0)
    answered = [seen for seen in found.seen if seen.status == 200]
    errors = [seen.error for seen in found.seen if seen.status != 200]
    assert not [error for error in errors if "internal_error" in error or FLAKY not in error]
    assert len(errors) <= 0.01 * len(found.seen), errors
    assert found.learned == found.rated == len(answered)
    ill = [seen for seen in found.seen if 4.0 < seen.at_s < 7.0]
    assert share(ill, FROZEN) < 0.05


def test_a_model_is_back_at_the_end_of_the_first_window_with_its_share():
    turns = [Seen(n / 10, 1.0, 200, FLAKY if n >= 300 and n % 3 == 0 else "other") for n in range(1000)]
    assert back_s(turns, FLAKY, 20.0, 0.3) == 14.5
    assert back_s(turns, FROZEN, 20.0, 0.1) == float("inf")
    table = told(Account(turns, 7, 7), 20.0, 10.0, 70.0)
    assert "| recovered | 700 | 0 | 1 | 1 | 1 | 33.4% | 0.0% |" in table
    assert "rated: 7" in table
