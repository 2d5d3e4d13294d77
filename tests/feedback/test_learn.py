"""The fold, held against sums worked out by hand: a rating of age t weighs 2^-(t / half-life)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.drift import Detector
from bandit.quality import SharedBaseline
from bandit.sources import earlier_self
from bandit.statistics import CallStatistics, RatingStatistics
from bandit.types import Vector
from feedback.alarms import RATINGS_LEFT, RECENT_RATINGS, answers
from feedback.cuts import CUTS_KEPT_S, CUTS_MAX, JUDGE
from feedback.events import (
    CHARGED,
    RATED,
    WITHDRAWN,
    Called,
    Charged,
    JudgeDrift,
    Rated,
    Reset,
    encode_called,
    encode_reset,
    feedback_tail,
)
from feedback.learn import EPOCH_SPAN, OTHER_SOURCES, SOURCES_MAX, WORKERS_REMEMBERED, fold, learn
from feedback.records import DECIDED_AT_MAX, DecisionPrefix
from feedback.state import HALF_LIFE_S, State
from feedback.store import position

TAG = b"features"
YEAR_S = 365.25 * 86_400
NOW = 1.79e9
EMPTY = State(TAG, 2)


@dataclass(frozen=True)
class Rating:
    arm: str
    source: str
    slope: float
    quality: float
    decided_at: float

    @property
    def x(self) -> Vector:
        return np.array([1.0, self.slope])

    @property
    def prefix(self) -> bytes:
        return DecisionPrefix(self.arm, self.x, self.decided_at, 0.5, TAG, b"policy!!").encode()

    def entry(self, *, old: float | None = None, origin: str = "1-0") -> bytes:
        tail = feedback_tail(self.quality, old, self.source, "" if old is None else origin)
        return bytes([RATED, old is not None]) + self.prefix + tail

    def withdrawn(self, origin: str) -> bytes:
        return (
            bytes([RATED, WITHDRAWN]) + self.prefix + feedback_tail(None, self.quality, self.source, origin)
        )


def ratings_within(years: float) -> st.SearchStrategy[Rating]:
    return st.builds(
        Rating,
        arm=st.sampled_from(["small", "large"]),
        source=st.sampled_from(["user", "judge:a"]),
        slope=st.floats(-1, 1, width=16),
        quality=st.floats(0, 1, width=32),
        decided_at=st.floats(NOW - years * YEAR_S, NOW + years * YEAR_S),
    )


NEAR = ratings_within(2)
RATINGS = NEAR | ratings_within(50)
MANY = st.lists(RATINGS, min_size=1, max_size=25)


def epoch_of(state: State) -> int:
    assert state.epoch is not None
    return state.epoch


def folded(entries: Iterable[bytes], state: State = EMPTY) -> State:
    for number, entry in enumerate(entries, state.events + state.skipped + 1):
        state = fold(state, f"{number}-0:", entry)
    return state


def rated(*ratings: Rating) -> State:
    return folded(rating.entry() for rating in ratings)


def numbers(statistics: RatingStatistics) -> Vector:
    return np.concatenate([statistics.xx.ravel(), statistics.xr, np.array([statistics.n, statistics.rr])])


def explicit(ratings: list[Rating], arm: str, as_of: float) -> Vector:
    """The weighted sums of the docstring, in plain floating point."""
    total = np.zeros(8)
    for r in ratings:
        if r.arm == arm:
            weight = 2.0 ** -((as_of - r.decided_at) / HALF_LIFE_S)
            total += weight * np.array(
                [1.0, r.slope, r.slope, r.slope**2, r.quality, r.quality * r.slope, 1.0, r.quality**2]
            )
    return total


def assert_alike(
    one: Mapping[str, RatingStatistics], other: Mapping[str, RatingStatistics], within: float = 1e-12
) -> None:
    """The same sums, to 1e-12 of the weight they are sums over (every term is at most its weight)."""
    assert one.keys() == other.keys()
    for arm in one:
        allowed = within * max(one[arm].n, other[arm].n)
        assert np.abs(numbers(one[arm]) - numbers(other[arm])).max() <= allowed


@given(MANY)
def test_a_rating_weighs_what_its_age_says_however_far_apart_ratings_are(ratings: list[Rating]) -> None:
    state = rated(*ratings)
    as_of = max(r.decided_at for r in ratings)
    assert state.as_of == as_of
    for arm, statistics in state.ratings_per_arm().items():
        wanted = explicit(ratings, arm, state.read_at())
        assert np.abs(numbers(statistics) - wanted).max() <= 1e-10 * wanted[6] + 1e-300


@given(st.data(), MANY)
def test_the_order_of_ratings_does_not_matter(data: st.DataObject, ratings: list[Rating]) -> None:
    shuffled = data.draw(st.permutations(ratings))
    assert_alike(rated(*ratings).ratings_per_arm(), rated(*shuffled).ratings_per_arm())


@given(MANY, st.integers(0, 25))
def test_a_restart_anywhere_changes_no_bit(ratings: list[Rating], cut: int) -> None:
    entries = [rating.entry() for rating in ratings]
    saved = State.from_bytes(folded(entries[:cut]).to_bytes())
    assert folded(entries[cut:], saved).digest() == folded(entries).digest()


@given(st.lists(NEAR, min_size=1, max_size=25), st.integers(EPOCH_SPAN, 400), st.booleans())
def test_moving_the_epoch_changes_weights_by_a_power_of_two_and_no_digit(
    ratings: list[Rating], half_lives: int, first: bool
) -> None:
    """One rating decades later moves the epoch: after all the others, or before them, so that they all are late."""
    far = Rating("far", "user", 0.0, 0.5, NOW + 3 * YEAR_S + half_lives * HALF_LIFE_S)
    unmoved = rated(*ratings)
    moved = rated(far, *ratings) if first else rated(*ratings, far)
    shift = epoch_of(moved) - epoch_of(unmoved)
    assert shift > EPOCH_SPAN
    for key, statistics in unmoved.ratings.items():
        assert numbers(moved.ratings[key]).tobytes() == np.ldexp(numbers(statistics), -shift).tobytes()


def test_a_rating_older_than_the_epoch_is_taken_at_its_weight() -> None:
    now = 700 * HALF_LIFE_S
    late = Rating("small", "user", 0.0, 1.0, now - 3 * HALF_LIFE_S)
    statistics = rated(Rating("small", "user", 0.0, 0.0, now), late).ratings_per_arm()["small"]
    assert statistics.n == pytest.approx(1.125, rel=1e-12)
    assert statistics.xr[0] == pytest.approx(0.125, rel=1e-12)


@pytest.mark.parametrize("first", [0.0, NOW, DECIDED_AT_MAX])
def test_a_clock_that_is_ages_off_overflows_nothing(first: float) -> None:
    extremes = [first, 0.0, DECIDED_AT_MAX, NOW, 1e-300]
    state = rated(*(Rating("small", "user", 0.5, 0.5, t) for t in extremes))
    assert state.events == len(extremes)
    assert np.isfinite(numbers(state.ratings["small", "user"])).all()
    assert np.isfinite(numbers(state.ratings_per_arm()["small"])).all()
    State.from_bytes(state.to_bytes())


@given(MANY, RATINGS, st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_a_revised_rating_counts_as_if_its_last_value_had_been_given_at_once(
    others: list[Rating], rating: Rating, revisions: list[float]
) -> None:
    entries = [rating.entry(), *(other.entry() for other in others)]
    old = rating.quality
    for value in revisions:
        entries.append(replace(rating, quality=value).entry(old=old))
        old = value
    at_once = rated(replace(rating, quality=old), *others)
    assert_alike(folded(entries).ratings_per_arm(), at_once.ratings_per_arm())


@given(st.lists(st.binary(max_size=120) | RATINGS.map(Rating.entry), max_size=12))
def test_entries_of_no_event_are_skipped_and_counted_and_never_raise(entries: list[bytes]) -> None:
    state = folded(entries)
    assert state.events + state.skipped == len(entries)
    readable = [entry for entry in entries if entry[:1] == bytes([RATED])]
    known = folded(readable)
    assert {key: numbers(s).tobytes() for key, s in state.ratings.items()} == {
        key: numbers(s).tobytes() for key, s in known.ratings.items()
    }


@given(st.data(), RATINGS)
def test_a_damaged_entry_never_raises_and_leaves_finite_sums(data: st.DataObject, rating: Rating) -> None:
    entry = bytearray(rating.entry(old=0.5))
    for _ in range(data.draw(st.integers(1, 6))):
        entry[data.draw(st.integers(0, len(entry) - 1))] = data.draw(st.integers(0, 255))
    state = folded([rating.entry(), bytes(entry), rating.entry()])
    assert state.events + state.skipped == 3
    for statistics in state.ratings.values():
        assert np.isfinite(numbers(statistics)).all()
    State.from_bytes(state.to_bytes())


def test_a_skipped_entry_still_moves_the_cursor() -> None:
    state = fold(rated(Rating("small", "user", 0.0, 1.0, NOW)), "9-0:ab", b"poison")
    assert (state.cursor, state.events, state.skipped) == ("9-0:ab", 1, 1)


@pytest.mark.parametrize("decided_at", [1e300, -1e300, 1e12, -1.0, math.inf, math.nan])
def test_a_time_that_is_no_clocks_is_skipped_before_it_could_move_the_epoch(decided_at: float) -> None:
    good = Rating("small", "user", 0.5, 0.5, NOW)
    state = folded([good.entry(), replace(good, decided_at=decided_at).entry(), good.entry()])
    assert (state.events, state.skipped, state.as_of) == (2, 1, NOW)
    assert state.epoch == rated(good).epoch


@pytest.mark.parametrize("features", [b"another!", TAG])
def test_vectors_of_another_feature_version_are_skipped(features: bytes) -> None:
    x = np.ones(2) if features != TAG else np.ones(3)
    decision = DecisionPrefix("small", x, NOW, 0.5, features, b"policy!!")
    state = learn(EMPTY, Rated(decision, "user", 1.0))
    assert (state.events, state.skipped, dict(state.ratings)) == (0, 1, {})


def test_learning_leaves_the_state_it_started_from_alone() -> None:
    before = rated(Rating("small", "user", 0.5, 0.5, NOW))
    digest = before.digest()
    folded([Rating("small", "user", 0.25, 1.0, NOW + 90 * HALF_LIFE_S).entry()], before)
    assert before.digest() == digest


def called(worker: str, sequence: int, **calls: int) -> bytes:
    return encode_called(Called(worker, sequence, {arm: CallStatistics(calls=n) for arm, n in calls.items()}))


def test_a_workers_sums_count_once_however_often_they_are_appended() -> None:
    once = folded([called("w", 0, small=3), called("w", 1, small=4, large=1)])
    again = folded(
        [called("w", 0, small=3)] * 3 + [called("w", 1, small=4, large=1), called("w", 0, small=3)]
    )
    assert once.calls == again.calls == {"small": CallStatistics(calls=7), "large": CallStatistics(calls=1)}
    assert (again.events, again.skipped) == (2, 3)


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.integers(1, 9)), max_size=30))
def test_each_worker_counts_for_itself(ticks: list[tuple[str, int]]) -> None:
    sequence = dict.fromkeys("uvw", -1)
    entries = []
    for worker, n in ticks:
        sequence[worker] += 1
        entries += [called(worker, sequence[worker], small=n)] * (1 + n % 2)
    total = folded(entries).calls.get("small", CallStatistics())
    assert total == CallStatistics(calls=sum(n for _, n in ticks))


def test_workers_of_long_ago_are_forgotten_and_what_they_taught_is_not() -> None:
    state = folded(called(f"w-{n}", 0, small=1) for n in range(WORKERS_REMEMBERED + 10))
    assert len(state.workers) == WORKERS_REMEMBERED
    assert "w-9" not in state.workers
    assert "w-10" in state.workers
    assert state.calls["small"].calls == WORKERS_REMEMBERED + 10


def test_a_worker_that_keeps_talking_is_remembered() -> None:
    entries = [called("steady", 0, small=1)]
    for n in range(WORKERS_REMEMBERED + 10):
        entries += [called(f"w-{n}", 0, small=1), called("steady", n + 1, small=1)]
    state = folded([*entries, called("steady", 5, small=1)])
    assert state.skipped == 1
    assert state.workers["steady"] == WORKERS_REMEMBERED + 10


def decided(arm: str = "small") -> DecisionPrefix:
    return DecisionPrefix(
        arm,
        np.ones(2),
        NOW,
        0.5,
        TAG,
        b"policy!!",
        listed_in_nano_usd=2_000,
        listed_out_nano_usd_per_token=3,
    )


def test_a_reported_cost_is_summed_beside_what_the_registry_said() -> None:
    """0.25 USD and then 0.5 USD instead, and another call of 1 USD: 1.5 USD for two calls."""
    state = learn(EMPTY, Charged(decided(), "application", 0.25))
    state = learn(state, Charged(decided(), "application", 1.0))
    state = learn(state, Charged(decided(), "application", 0.5, old=0.25))
    assert state.calls == {
        "small": CallStatistics(
            reported_calls=2,
            reported_nano_usd=1_500_000_000,
            listed_in_nano_usd=4_000,
            listed_out_nano_usd_per_token=6,
        )
    }


def test_a_cost_reported_while_the_model_had_no_price_is_kept_apart() -> None:
    free = replace(decided(), listed_in_nano_usd=0, listed_out_nano_usd_per_token=0)
    state = learn(EMPTY, Charged(free, "application", 0.25))
    state = learn(state, Charged(free, "application", 0.5, old=0.25))
    state = learn(state, Charged(decided(), "application", 1.0))
    calls = state.calls["small"]
    assert (calls.unpriced_calls, calls.unpriced_nano_usd) == (1, 500_000_000)
    assert (calls.reported_calls, calls.reported_nano_usd) == (1, 1_000_000_000)


def test_reported_costs_beyond_64_bits_can_still_be_saved() -> None:
    prefix = decided().encode()
    entry = bytes([CHARGED, 0]) + prefix + feedback_tail(1e6, None, "application")
    much = CallStatistics(reported_nano_usd=2**64 - 1)
    state = fold(replace(EMPTY, calls={"small": much}), "1-0:", entry)
    back = State.from_bytes(state.to_bytes())
    assert back.calls["small"].reported_nano_usd == 2**64 - 1 + 10**15


def test_a_decision_from_the_future_of_the_stores_clock_is_skipped() -> None:
    """It would make everything that is known look old, on every replica and for good."""
    logged_ms = 1_790_000_000_000
    tail = feedback_tail(0.5, None, "user")
    for ahead_s, kept in ((299.0, True), (301.0, False), (365 * 86_400.0, False)):
        decision = replace(decided(), decided_at=logged_ms / 1000 + ahead_s)
        state = fold(EMPTY, f"{logged_ms}-0:t", bytes([RATED, 0]) + decision.encode() + tail)
        assert (state.events, state.skipped) == ((1, 0) if kept else (0, 1))


def test_sources_beyond_the_most_that_are_kept_are_summed_together() -> None:
    state = EMPTY
    for n in range(SOURCES_MAX + 40):
        state = learn(state, Rated(decided(), f"judge:{n}", 0.5))
    assert len({source for _, source in state.ratings}) == SOURCES_MAX + 1
    assert state.ratings["small", OTHER_SOURCES].n == pytest.approx(40 * state.ratings["small", "judge:0"].n)


# ---- undo and reset

SOURCES, ARMS = ("user", "judge:a"), ("small", "large")


@dataclass
class Life:
    """A log as it grows, and what must be left of each rating in the end: its weight times all factors since it was given.
    earlier: those whose source has drifted since.
    """

    entries: list[bytes] = field(default_factory=list)
    ratings: dict[int, Rating] = field(default_factory=dict)  # by number of the entry that gave it
    left: dict[int, float] = field(default_factory=dict)
    earlier: set[int] = field(default_factory=set)

    def give(self, rating: Rating) -> None:
        self.entries.append(rating.entry())
        self.ratings[len(self.entries)], self.left[len(self.entries)] = rating, 1.0

    def revise(self, number: int, quality: float) -> None:
        old = self.ratings[number]
        self.ratings[number] = replace(old, quality=quality)
        self.entries.append(self.ratings[number].entry(old=old.quality, origin=f"{number}-0"))

    def withdraw(self, number: int) -> None:
        self.entries.append(self.ratings[number].withdrawn(f"{number}-0"))
        self.left[number] = 0.0

    def cut(self, event: Reset | JudgeDrift) -> None:
        self.entries.append(encode_reset(event))
        for number, rating in self.ratings.items():
            if isinstance(event, Reset):
                if event.arm == rating.arm and event.source in (None, rating.source):
                    self.left[number] *= event.factor
            elif event.source == rating.source and number not in self.earlier:
                self.earlier.add(number)
            elif event.source == rating.source:
                self.left[number] *= event.factor


@st.composite
def lives(draw: st.DrawFn) -> Life:
    life = Life()
    for _ in range(draw(st.integers(1, 30))):
        what = draw(st.sampled_from(["give", "give", "revise", "withdraw", "cut"]))
        given = [number for number, left in life.left.items() if left > 0]
        if what == "give" or (not given and what != "cut"):
            life.give(draw(ratings_within(0.5)))  # within any feedback window of each other
        elif what == "revise":
            life.revise(draw(st.sampled_from(given)), draw(st.floats(0, 1, width=32)))
        elif what == "withdraw":
            life.withdraw(draw(st.sampled_from(given)))
        else:
            factor = draw(st.sampled_from([0.02, 0.5, 1.0, 1e-3]))
            source = draw(st.sampled_from([None, *SOURCES]))
            arm = draw(st.sampled_from([None, *ARMS]))
            life.cut(Reset(arm, source, factor, "operator", NOW) if arm else JudgeDrift("user", factor, NOW))
    return life


@given(lives())
def test_whatever_is_revised_reset_and_withdrawn_what_is_left_is_each_ratings_own_share(life: Life) -> None:
    """Any interleaving: the sums are those of the ratings as last given, times the factors since they were given; what
    was withdrawn counts as never given. To 1e-12 of the weight that ever was in the sums.
    """
    state = folded(life.entries)
    assert state.skipped == 0
    for arm, statistics in state.ratings_per_arm().items():
        own = {number: rating for number, rating in life.ratings.items() if rating.arm == arm}
        wanted, ever = np.zeros(8), 0.0
        for number, rating in own.items():
            wanted += life.left[number] * explicit([rating], arm, state.read_at())
            ever += explicit([rating], arm, state.read_at())[6]
        assert np.abs(numbers(statistics) - wanted).max() <= 1e-12 * ever


@given(lives())
def test_after_any_life_there_is_a_posterior(life: Life) -> None:
    """Whatever is left of whose ratings: else learning would end for good."""
    believed = (
        folded(life.entries).posterior(SharedBaseline()).quality.predict(np.ones(2), ["small", "large"])
    )
    assert np.isfinite(believed.mean).all()
    assert (believed.covariance.diagonal() > 0).all()


@given(lives(), st.integers(0, 30))
def test_a_restart_within_such_a_life_changes_no_bit(life: Life, cut: int) -> None:
    saved = State.from_bytes(folded(life.entries[:cut]).to_bytes())
    assert folded(life.entries[cut:], saved).digest() == folded(life.entries).digest()


def test_a_withdrawn_rating_is_as_if_it_had_never_been_given() -> None:
    kept = [Rating("small", "user", 0.5, 0.5, NOW - n * 1e5) for n in range(5)]
    gone = Rating("small", "user", -0.75, 0.9, NOW - 5e6)
    entries = [gone.entry(), *(rating.entry() for rating in kept), gone.withdrawn("1-0")]
    assert_alike(folded(entries).ratings_per_arm(), rated(*kept).ratings_per_arm())


def test_a_withdrawal_of_what_is_not_in_the_sums_is_skipped() -> None:
    """Its arm was never rated, its features are of another version, or the rating itself had come from the future."""
    known = rated(Rating("small", "user", 0.5, 0.5, NOW))
    stranger = fold(known, "2-0:", Rating("large", "user", 0.5, 0.5, NOW).withdrawn("1-0"))
    assert (stranger.events, stranger.skipped) == (1, 1)
    other = DecisionPrefix("small", np.ones(2), NOW, 0.5, b"another!", b"policy!!").encode()
    entry = bytes([RATED, WITHDRAWN]) + other + feedback_tail(None, 0.5, "user", "1-0")
    assert fold(known, "2-0:", entry).skipped == 1
    logged_ms = round(NOW * 1000)
    ahead = Rating("small", "user", 0.5, 0.5, NOW + 301.0)
    later_ms = logged_ms + 400_000
    for change in (ahead.withdrawn(f"{logged_ms}-0"), ahead.entry(old=0.3, origin=f"{logged_ms}-0")):
        assert fold(known, f"{later_ms}-0:", change).skipped == 1


def test_resets_that_no_rating_can_ask_for_any_more_are_forgotten() -> None:
    state = rated(Rating("small", "user", 0.0, 0.5, NOW))
    for n in range(CUTS_MAX + 5):
        state = fold(state, f"{n + 2}-0:", encode_reset(Reset("small", None, 1.0, "operator", NOW + n)))
    assert len(state.cuts) == CUTS_MAX
    assert state.cuts[-1].at == NOW + CUTS_MAX + 4
    later = Rating("small", "user", 0.0, 0.5, NOW + CUTS_KEPT_S + 10)
    state = fold(
        fold(state, "5000-0:", later.entry()), "5001-0:", encode_reset(Reset("large", None, 1.0, "x", NOW))
    )
    kept = {NOW + n for n in range(10, CUTS_MAX + 5)}
    assert {cut.at for cut in state.cuts} == kept | {later.decided_at}


def test_of_a_rating_from_before_the_resets_that_are_remembered_nothing_is_taken_back() -> None:
    """What is left of it cannot be told any more, and taking back too much would leave sums of no ratings."""
    early, late = (Rating("small", "user", slope, 0.5, NOW) for slope in (0.0, 0.5))
    state = fold(rated(early), "2-0:", encode_reset(Reset("small", None, 0.01, "operator", NOW)))
    for n in range(CUTS_MAX):
        if n == 5:
            state = fold(state, f"{n + 3}-0:", late.entry())
        else:
            state = fold(state, f"{n + 3}-0:", encode_reset(Reset("large", None, 0.5, "operator", NOW)))
    exact = state.ratings_per_arm()["small"].n
    assert len(state.cuts) == CUTS_MAX
    state = fold(state, "5000-0:", encode_reset(Reset("large", None, 0.5, "operator", NOW)))
    after = fold(state, "5001-0:", early.withdrawn("1-0"))
    assert after.ratings_per_arm()["small"].n == exact
    assert fold(after, "5002-0:", late.withdrawn("8-0")).ratings_per_arm()["small"].n == pytest.approx(
        0.01 * rated(early).ratings_per_arm()["small"].n
    )


# ---- drift


def expected(arm: str, quality: float, *, source: str = "user", mean: float = 0.7, sd: float = 0.05) -> Rated:
    decision = DecisionPrefix(arm, np.ones(2), NOW, 0.5, TAG, b"policy!!", quality_mean=mean, quality_sd=sd)
    return Rated(decision, source, quality)


def lived(state: State, events: Iterable[Rated]) -> State:
    """Each event at a position of its own."""
    for event in events:
        state = learn(replace(state, cursor=f"{state.events + 1}-0:"), event)
    return state


def stream(arm: str, mean: float, n: int, *, source: str = "user", seed: int = 0) -> list[Rated]:
    ratings = np.random.default_rng(seed).normal(mean, 0.2, n).clip(0, 1)
    return [expected(arm, float(rating), source=source) for rating in ratings]


def test_a_rating_is_told_to_the_detector_of_its_arm_and_source_once() -> None:
    state = lived(EMPTY, [expected("small", 0.9)])
    wanted = Detector().after(0.9, 0.7, 0.05)
    assert state.detectors == {("small", "user"): wanted}
    revised = replace(expected("small", 0.1), old=0.9, origin=(1, 0))
    assert lived(state, [revised]).detectors == {("small", "user"): wanted}
    unexpected = replace(expected("small", 0.1), decision=decided())
    assert lived(state, [unexpected]).detectors == {("small", "user"): wanted}
    assert lived(state, [revised, unexpected]).rated == 2


def test_an_alarm_waits_for_its_answer_and_is_raised_once() -> None:
    state = lived(EMPTY, stream("small", 0.7, 300) + stream("small", 0.4, 200))
    (alarm,) = state.alarms
    assert (alarm.arm, alarm.source, alarm.direction) == ("small", "user", "drop")
    assert 300 < position(alarm.token)[0] < 380
    (answer,) = answers(state)
    known = state.ratings_per_arm()["small"].n
    assert answer == Reset("small", None, RATINGS_LEFT / known, "drift", NOW, alarm.token)


def test_of_an_arm_that_is_hardly_known_a_reset_forgets_nothing() -> None:
    state = lived(EMPTY, stream("small", 0.7, 300) + stream("small", 0.4, 200))
    long_ago = {key: sums.times(RATINGS_LEFT / 1000) for key, sums in state.ratings.items()}
    (answer,) = answers(replace(state, ratings=long_ago))
    assert answer.factor == 1.0


def test_a_reset_forgets_most_of_the_arm_by_all_sources_and_nothing_of_others() -> None:
    state = lived(EMPTY, stream("large", 0.7, 60) + stream("small", 0.7, 300) + stream("small", 0.4, 200))
    state = lived(state, stream("small", 0.7, 10, source="judge:a"))
    (answer,) = answers(state)
    after = learn(replace(state, cursor="999-0:"), answer)
    assert after.ratings_per_arm()["small"].n == pytest.approx(RATINGS_LEFT)
    for key, before in state.ratings.items():
        factor = answer.factor if key[0] == "small" else 1.0
        assert after.ratings[key].n == before.n * factor
        assert (after.ratings[key] is before) == (key[0] == "large")
    assert after.alarms == ()
    assert after.detectors.keys() == {("large", "user")}
    assert after.cuts[-1].direction == "drop"


def test_ten_replicas_that_answer_one_alarm_reset_once() -> None:
    state = lived(EMPTY, stream("small", 0.7, 300) + stream("small", 0.4, 200))
    (answer,) = answers(state)
    once = learn(replace(state, cursor="998-0:"), answer)
    again = learn(replace(once, cursor="999-0:"), answer)
    assert again.ratings is once.ratings
    assert again.skipped == once.skipped + 1


def all_arms(before: float, after: float, source: str = "user") -> list[Rated]:
    """Three arms in turn, whose ratings all change at once."""
    streams = [
        stream(arm, before, 300, source=source, seed=seed)
        + stream(arm, after, 120, source=source, seed=seed + 9)
        for seed, arm in enumerate(("small", "middle", "large"))
    ]
    return [event for events in zip(*streams, strict=True) for event in events]


def until_alarm(events: Iterable[Rated], state: State = EMPTY) -> State:
    for event in events:
        state = lived(state, [event])
        if state.alarms:
            return state
    raise AssertionError("no alarm")


def test_a_judge_that_grows_strict_is_blamed_and_the_models_are_not() -> None:
    state = until_alarm(all_arms(0.7, 0.45, "judge:a"), lived(EMPTY, stream("small", 0.7, 40)))
    (answer,) = answers(state)
    assert isinstance(answer, JudgeDrift)
    assert answer.source == "judge:a"
    after = learn(replace(state, cursor="9999-0:"), answer)
    for key, before in state.ratings.items():
        now = (key[0], earlier_self("judge:a")) if key[1] == "judge:a" else key
        assert after.ratings[now].n == before.n
        assert after.ratings[key].n == (before.n if now == key else 0.0)
    assert (after.alarms, after.detectors.keys()) == ((), {("small", "user")})
    assert after.cuts[-1].cause == JUDGE


@pytest.mark.parametrize("source", ["user", "judge:a"])
def test_what_a_source_said_before_it_drifted_is_corrected_and_not_forgotten(source: str) -> None:
    """It knew "small" for the best by 0.2; since it grew strict it has rated each model thirty times."""
    means = {"small": 0.8, "middle": 0.6, "large": 0.6}
    known = lived(
        EMPTY, [e for n, (a, m) in enumerate(means.items()) for e in stream(a, m, 200, seed=n, source=source)]
    )
    drifted = learn(replace(known, cursor="9000-0:"), JudgeDrift(source, 0.02, NOW))
    strict = [
        e for n, (a, m) in enumerate(means.items()) for e in stream(a, m - 0.3, 30, seed=n + 9, source=source)
    ]
    state = replace(drifted, events=9001)
    state = lived(state, strict)
    told = {arm: s.xr[0] / s.weight for arm, s in state.on_one_scale().items()}
    assert told["small"] - told["middle"] == pytest.approx(0.2, abs=0.08)
    assert told["small"] - told["large"] == pytest.approx(0.2, abs=0.08)
    assert told["small"] == pytest.approx(0.5, abs=0.08), "its new word is what counts"
    assert state.on_one_scale()["small"].weight > 200
    assert state.cuts[-1].told() == (
        f"what was learned of all models by {source} is held to what it says from now on (judge drift)"
    )


def test_a_change_of_a_rating_that_never_was_before_the_drift_is_skipped() -> None:
    """It claims to be older than what its source had said of any model."""
    drifted = learn(replace(EMPTY, cursor="5-0:"), JudgeDrift("user", 0.02, NOW))
    state = fold(drifted, "6-0:", Rating("small", "user", 0.5, 0.5, NOW).entry())
    claimed = fold(state, "7-0:", Rating("small", "user", 0.5, 0.5, NOW).withdrawn("1-0"))
    assert (claimed.ratings, claimed.skipped) == (state.ratings, state.skipped + 1)
    assert fold(state, "7-0:", Rating("small", "user", 0.5, 0.5, NOW).withdrawn("6-0")).ratings[
        "small", "user"
    ].n == pytest.approx(0.0, abs=1e-12)


def test_where_several_sources_rate_an_expectation_that_moves_is_no_drift() -> None:
    """A judge's ratings stay what they were while it is learned that it is too kind; a drop of them is found all the same."""
    judged = lived(lived(EMPTY, stream("other", 0.7, 1)), stream("small", 0.7, 200, source="judge:a"))
    same = [
        replace(e, decision=expected("small", 0.0, mean=0.4).decision)
        for e in stream("small", 0.7, 300, source="judge:a", seed=1)
    ]
    assert lived(judged, same).alarms == ()
    alone = lived(EMPTY, stream("small", 0.7, 200, source="judge:a"))
    assert lived(alone, same).alarms, "what one source expects of itself does not move"
    (alarm,) = lived(judged, stream("small", 0.4, 100, source="judge:a", seed=1)).alarms
    assert (alarm.arm, alarm.direction) == ("small", "drop")


def test_one_model_that_fails_while_others_hold_is_blamed_itself() -> None:
    steady = stream("middle", 0.7, 420, seed=1), stream("large", 0.7, 420, seed=2)
    failing = stream("small", 0.7, 300) + stream("small", 0.45, 120)
    state = until_alarm(event for events in zip(failing, *steady, strict=True) for event in events)
    (answer,) = answers(state)
    assert isinstance(answer, Reset)
    assert answer.arm == "small"


def test_models_that_two_sources_see_fail_are_blamed_themselves() -> None:
    both = zip(all_arms(0.7, 0.45, "judge:a"), all_arms(0.7, 0.45, "user"), strict=True)
    state = until_alarm(event for events in both for event in events)
    assert {type(answer) for answer in answers(state)} == {Reset}


def test_alarms_one_after_the_other_are_a_judges_in_the_end() -> None:
    """While the first arm is reset the second shows no change yet: the second alarm tells."""
    first = until_alarm(
        stream("small", 0.7, 300) + stream("small", 0.4, 120), lived(EMPTY, stream("large", 0.7, 300, seed=3))
    )
    (answer,) = answers(first)
    assert isinstance(answer, Reset)
    state = until_alarm(stream("large", 0.4, 120, seed=4), learn(replace(first, cursor="900-0:"), answer))
    (answer,) = answers(state)
    assert isinstance(answer, JudgeDrift)
    after = learn(replace(state, cursor="901-0:"), answer)
    assert not any(detector.n for detector in after.detectors.values())
    long_after = replace(first, cuts=first.cuts, rated=first.rated)
    far = learn(replace(long_after, cursor="900-0:"), answers(first)[0])
    far = replace(far, rated=far.rated + RECENT_RATINGS + 1)
    assert isinstance(answers(until_alarm(stream("large", 0.4, 120, seed=4), far))[0], Reset)
