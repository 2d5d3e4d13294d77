"""The retry budget: calls beyond a request's first are a share of all requests, so that an outage is not made worse.

Every request pays `share` into the budget and every further call takes 1 out; a trickle keeps a quiet gateway able to
try again at all. From its start on:  further calls <= share x requests + TRICKLE_PER_S x seconds + RESERVE. What good times
leave is saved up to SAVED_MAX: the first second of an outage takes many at once, before anybody knows who is ill.
"""

from typing import Final

RESERVE: Final = 20.0
SAVED_MAX: Final = 300.0
TRICKLE_PER_S: Final = 1.0


class RetryBudget:
    """share: 0 to 1. now_s: monotonic seconds."""

    __slots__ = ("_balance", "_share", "_updated_s", "denied")

    def __init__(self, share: float, *, now_s: float) -> None:
        self.denied = 0
        self._share, self._balance, self._updated_s = share, RESERVE, now_s

    def request(self) -> None:
        """A request of a client begins; not one that its SDK sends again, which would pay for a storm with itself."""
        self._balance = min(self._balance + self._share, SAVED_MAX)

    def take(self, now_s: float) -> bool:
        """May a further call be made? Then it is taken out."""
        trickle = max(0.0, now_s - self._updated_s) * TRICKLE_PER_S if self._share else 0.0
        self._balance = max(self._balance, min(self._balance + trickle, RESERVE))
        self._updated_s = now_s
        if not self._share or self._balance < 1.0:
            self.denied += 1
            return False
        self._balance -= 1.0
        return True
