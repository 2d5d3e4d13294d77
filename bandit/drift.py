"""Drift: has an arm become better or worse than its posterior says, by the ratings of one source?

A two-sided Shiryaev-Roberts detector on the innovations u of each (arm, source). Per direction and per assumed shift:

    u = r - mu           mu = predicted mean when deciding + learned offset of this source, within [0, 1]
    R <- (w + R) (1 + lambda u)       for a rise;   1 - lambda u for a drop       lambda = shift / s2, see `_grown`
    alarm where the mean of R over SHIFTS reaches THRESHOLD

1 + lambda u is the likelihood ratio of a shift of that size where ratings are 0 or 1, and close to it where they are
graded. While nothing changes its expectation is 1 whatever the distribution of ratings, so R - sum w is a martingale and
the mean number of labels to a false alarm is at least THRESHOLD for each direction (Shin, Ramdas, Rinaldo, E-detectors,
arXiv 2203.03532). A CUSUM of z-scores has no such guarantee: with a threshold that keeps the promise in one world it
breaks it in another, and finds a drop of 0.1 far later (`python -m simulations drift` prints both).

The offset and the spread s2 are learned from the arm's own innovations, for a judge may be stricter than the pool and a
posterior pools the noise of all arms. A rating whose expectation was itself unsure when deciding says nothing of drift
and is passed over: where feedback is late, hundreds of decisions may share the error of one early belief. w is 0 for the
first labels, while offset and spread are learned, then 1, and nearly 0 where ratings hardly vary: nothing can be said
there until they do. Everything is scalar IEEE arithmetic (+ - * /), so every replica computes the same bits.
"""

from collections.abc import Collection, Mapping
from typing import Final, Literal, NamedTuple

Direction = Literal["rise", "drop"]
Evidence = tuple[float, float]  # R for each of SHIFTS

LABELS_PER_FALSE_ALARM: Final = (
    20_000.0  # of one arm; 10,000 are promised, what is still learned takes its share
)
THRESHOLD: Final = 2 * LABELS_PER_FALSE_ALARM  # two directions
SHIFTS: Final = (0.05, 0.15)  # in points of quality / 100
SPREAD_MIN: Final = 0.1  # of ratings; less is taken for this, lest a tiny misfit of the model look like proof
STAKE_MAX: Final = 0.75  # no single rating takes away more than this share of the evidence
WARM_UP_LABELS: Final = 30.0
WEIGHT_MIN: Final = 0.0001  # of a label where ratings do not vary
OFFSET_LABELS: Final = 10.0  # pseudo-labels that hold the offset at 0 and the variance at VARIANCE_BEFORE
VARIANCE_BEFORE: Final = 0.05
UNSURE: Final = 0.25  # of the ratings' own variance: an expectation with more is none to hold them to
MEMORY_LABELS: Final = 1000.0  # over how many labels offset and spread are averaged
_PRIOR_SCATTER: Final = OFFSET_LABELS * VARIANCE_BEFORE
_LEAST_VARIANCE: Final = SPREAD_MIN * SPREAD_MIN
LEANING: Final = 50.0  # likelihood ratio that fewer than one detector in twenty holds by chance at any time


class Detector(NamedTuple):
    """What is remembered of the innovations of one arm and source. n: labels, up to MEMORY_LABELS; offset: their mean;
    scatter: sum of squares; rises, drops: evidence R of each direction.
    """

    n: float = 0.0
    offset: float = 0.0
    scatter: float = 0.0
    rises: Evidence = (0.0, 0.0)
    drops: Evidence = (0.0, 0.0)

    def after(self, quality: float, predicted_mean: float, predicted_sd: float) -> "Detector":
        """The detector after one more rating in [0, 1]. predicted_mean: its expectation when deciding; predicted_sd: how
        unsure that expectation was (a standard deviation, the noise of a rating left out).
        """
        seen, offset = self.n, self.offset
        variance = (_PRIOR_SCATTER + self.scatter) / (OFFSET_LABELS + seen)
        variance = max(variance, _LEAST_VARIANCE)
        if predicted_sd * predicted_sd > UNSURE * max(variance, VARIANCE_BEFORE):
            return self
        mean = min(max(predicted_mean + offset, 0.0), 1.0)
        u = quality - mean
        kept = min(seen, MEMORY_LABELS - 1.0)
        n = kept + 1.0
        weight = self._weight()
        return Detector(
            n,
            offset + (quality - predicted_mean - offset) / (n + OFFSET_LABELS),
            (self.scatter * (kept / seen) if seen else 0.0) + u * u,
            _grown(self.rises, weight, u, variance, mean),
            _grown(self.drops, weight, -u, variance, 1.0 - mean),
        )

    def _weight(self) -> float:
        if self.n < WARM_UP_LABELS:
            return 0.0
        return min(max(self.scatter / self.n / (SPREAD_MIN * SPREAD_MIN), WEIGHT_MIN), 1.0)

    @property
    def speaks(self) -> bool:
        """Enough labels for a say in who drifted."""
        return self.n > WARM_UP_LABELS

    @property
    def alarm(self) -> Direction | None:
        """The direction of a change that is no chance."""
        rise, drop = (self.rises[0] + self.rises[1]) / 2.0, (self.drops[0] + self.drops[1]) / 2.0
        return _stronger(rise, drop, THRESHOLD)

    def alone(self, quality: float) -> "Detector":
        """The same where nothing was expected: ratings are held to their own mean so far."""
        return self.after(quality, 0.5, 0.0)

    @property
    def leaning(self) -> Direction | None:
        """The direction of a change that is likely, of two the likelier one.

        R sums the likelihood ratios of a change at each label so far; about 2 / (lambda s)^2 of them matter at any time.
        """
        if not self.speaks:
            return None
        variance = max(self.scatter / self.n, SPREAD_MIN * SPREAD_MIN)
        rise, drop = (
            max(
                min(shift / variance, STAKE_MAX) ** 2 * variance / 2.0 * r
                for shift, r in zip(SHIFTS, evidence, strict=True)
            )
            for evidence in (self.rises, self.drops)
        )
        return _stronger(rise, drop, LEANING)


def confirmed(detector: Detector, alone: Detector) -> Detector:
    """The first, its evidence begun anew where it alarms and the ratings alone do not lean that way.

    Where several sources rate, what is expected moves while it is learned how they differ (bandit.sources): then it is the
    expectation that has changed, and not the arm.
    """
    if detector.alarm in (None, alone.leaning):
        return detector
    return detector._replace(rises=(0.0, 0.0), drops=(0.0, 0.0))


def _stronger(rise: float, drop: float, least: float) -> Direction | None:
    if rise < least and drop < least:
        return None
    return "rise" if rise > drop else "drop"


def _grown(evidence: Evidence, weight: float, u: float, variance: float, worst: float) -> Evidence:
    """variance: of u; worst: how far below 0 it can be."""
    first, second = evidence
    small, large = SHIFTS[0] / variance, SHIFTS[1] / variance  # the best bets on shifts of these sizes,
    if small * worst > STAKE_MAX:  # bounded since u is nowhere below -worst
        small = STAKE_MAX / worst
    if large * worst > STAKE_MAX:
        large = STAKE_MAX / worst
    return (weight + first) * (1.0 + small * u), (weight + second) * (1.0 + large * u)


def source_drifted(
    direction: Direction,
    detectors: Mapping[str, Detector],
    alarmed: Mapping[str, Direction],
    elsewhere: Collection[str] = (),
) -> bool:
    """Whether an alarm is the source's doing: most arms that it rates, and at least two, move the same way by its word alone.

    detectors: arm -> its detector for this source; alarmed: arm -> direction of an alarm not long ago; elsewhere: arms
    that move this way by another source too. A judge that grows strict lowers all arms alike; that one model changed says
    nothing of the others.
    """
    speaking = {arm for arm, detector in detectors.items() if detector.speaks} | alarmed.keys()
    moved = {arm for arm in speaking if alarmed.get(arm) == direction}
    moved |= {arm for arm in speaking & detectors.keys() if detectors[arm].leaning == direction}
    moved -= set(elsewhere)
    return len(moved) >= 2 and 2 * len(moved) > len(speaking)
