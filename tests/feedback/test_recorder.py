from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
import pytest

from bandit.latency import LatencyStatistics
from bandit.statistics import CallStatistics
from feedback.answers import Answered, sample_of
from feedback.events import CALLED, Called, decode, encode_called
from feedback.learn import fold
from feedback.memory_store import MemoryLog
from feedback.recorder import (
    BATCH,
    DECISIONS_KEPT,
    LENGTHS_OF_ALL,
    LENGTHS_TOLD,
    WHOLE_KEPT,
    WRITTEN_KEPT,
    Recorder,
)
from feedback.records import (
    DecisionPrefix,
    Explanation,
    MalformedError,
    encode_record,
    prefix_bytes,
    without_explanation,
)
from feedback.state import START, State
from feedback.store import Log, StoreError

Faulty = Callable[[Log], Any]
CALL = CallStatistics(calls=1, tokens_in=100, tokens_out=20)
RECORD = encode_record(
    DecisionPrefix("small", np.ones(2), 1e9, 0.5, b"features", b"policy!!"),
    Explanation({"candidates": [["small", 0.5, 1.5]]}, np.ones(1), np.ones((1, 5), np.float32)),
)


@pytest.fixture
async def log() -> MemoryLog:
    log = MemoryLog()
    await log.seed(b"", START)
    return log


async def called(log: MemoryLog) -> Mapping[str, CallStatistics]:
    """What a replica makes of the log: the calls by arm."""
    state = State(b"features", 2)
    for entry in (await log.read(START, 1000)).entries:
        state = fold(state, entry.token, entry.data)
    return state.calls


class Batches(MemoryLog):
    """A log that notes what it is given, and can be interrupted by a decision of that very moment."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[str]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def put_decisions(self, records: Mapping[str, bytes], beacon: tuple[str, int] | None = None) -> int:
        self.given.append(list(records))
        self.meanwhile()
        return await super().put_decisions(records, beacon)


async def test_decisions_are_written_in_the_order_they_were_made_and_in_batches() -> None:
    log = Batches()
    recorder = Recorder(log, worker="w", features=b"features")
    ids = [f"d-{n}" for n in range(2 * BATCH + 10)]
    for decision_id in ids:
        recorder.decided(decision_id, b"record")
    await recorder.flush()
    assert [decision_id for batch in log.given for decision_id in batch] == ids
    assert [len(batch) for batch in log.given] == [BATCH, BATCH, 10]
    assert recorder.waiting == 0


async def test_nothing_is_written_for_nothing() -> None:
    log = Batches()
    await log.seed(b"", START)
    await Recorder(log, worker="w", features=b"features").flush()
    assert log.given == []
    assert list((await log.read(START, 10)).entries) == []


async def test_a_record_is_found_before_and_after_it_was_written(log: MemoryLog) -> None:
    recorder = Recorder(log, worker="w", features=b"features")
    assert recorder.record_of("d") is None
    recorder.decided("d", b"record")
    assert recorder.record_of("d") == b"record"
    assert await log.get_decision("d") is None
    await recorder.flush()
    assert recorder.record_of("d") == b"record"
    assert await log.get_decision("d") == b"record"


async def test_a_decision_made_while_others_are_written_is_written_too() -> None:
    log = Batches()
    recorder = Recorder(log, worker="w", features=b"features")
    recorder.decided("first", b"record")
    log.meanwhile = lambda: recorder.decided("second", b"record") if len(log.given) == 1 else None
    await recorder.flush()
    assert log.given == [["first"], ["second"]]
    assert recorder.waiting == 0


@pytest.mark.parametrize("fault", ["away", "loses_answers"])
async def test_decisions_wait_for_a_store_that_fails_and_are_written_later(
    log: MemoryLog, faulty: Faulty, fault: str
) -> None:
    unsteady = faulty(log)
    recorder = Recorder(unsteady, worker="w", features=b"features")
    recorder.decided("d", b"record")
    setattr(unsteady, fault, True)
    for _ in range(3):
        with pytest.raises(StoreError):
            await recorder.flush()
    assert recorder.waiting == 1
    assert recorder.record_of("d") == b"record"
    setattr(unsteady, fault, False)
    await recorder.flush()
    assert recorder.waiting == 0
    assert await log.get_decision("d") == b"record"


async def test_memory_is_bounded_while_the_store_is_away_and_the_loss_is_counted(
    log: MemoryLog, faulty: Faulty
) -> None:
    unsteady = faulty(log)
    recorder = Recorder(unsteady, worker="w", features=b"features")
    unsteady.away = True
    for n in range(DECISIONS_KEPT + 5):
        recorder.decided(f"d-{n}", RECORD)
    assert (recorder.waiting, recorder.dropped) == (DECISIONS_KEPT, 5)
    assert recorder.record_of("d-4") is None
    unsteady.away = False
    await recorder.flush()
    assert await log.get_decision("d-4") is None
    assert await log.get_decision("d-5") == RECORD


async def test_memory_of_what_was_written_is_bounded_and_explanations_go_first(log: MemoryLog) -> None:
    recorder = Recorder(log, worker="w", features=b"features")
    for start in (0, WRITTEN_KEPT):
        for n in range(start, start + WRITTEN_KEPT):
            recorder.decided(f"d-{n}", RECORD)
        await recorder.flush()
    assert recorder.dropped == 0
    assert recorder.record_of(f"d-{WRITTEN_KEPT - 1}") is None
    assert recorder.record_of(f"d-{WRITTEN_KEPT}") == without_explanation(RECORD)
    last = 2 * WRITTEN_KEPT - 1
    assert recorder.record_of(f"d-{last - WHOLE_KEPT}") == without_explanation(RECORD)
    assert recorder.record_of(f"d-{last - WHOLE_KEPT + 1}") == RECORD


async def test_what_a_failover_takes_back_is_written_again_the_latest_whole() -> None:
    log = MemoryLog()
    recorder = Recorder(log, worker="w", features=b"features")
    for n in range(WHOLE_KEPT + 10):
        recorder.decided(f"d-{n}", RECORD)
    await recorder.flush()
    log = recorder._log = MemoryLog()
    recorder.decided("new", RECORD)
    await recorder.flush()
    for decision_id, record in {
        "d-0": without_explanation(RECORD),
        "d-9": without_explanation(RECORD),
        "d-10": RECORD,
        "new": RECORD,
    }.items():
        assert await log.get_decision(decision_id) == record
    assert DecisionPrefix.decode(prefix_bytes(without_explanation(RECORD))).arm == "small"


async def test_calls_are_summed_per_arm_into_one_event_per_flush(log: MemoryLog) -> None:
    recorder = Recorder(log, worker="w", features=b"features")
    for arm in ("small", "large", "small"):
        recorder.called(arm, CALL)
    await recorder.flush()
    await recorder.flush()
    recorder.called("small", CALL)
    await recorder.flush()
    events = [decode(entry.data) for entry in (await log.read(START, 10)).entries]
    assert events == [
        Called("w", 0, {"small": CALL + CALL, "large": CALL}, features=b"features"),
        Called("w", 1, {"small": CALL}, features=b"features"),
    ]


@pytest.mark.parametrize("fault", ["away", "loses_answers"])
async def test_calls_are_counted_once_whatever_the_store_did_with_them(
    log: MemoryLog, faulty: Faulty, fault: str
) -> None:
    unsteady = faulty(log)
    recorder = Recorder(unsteady, worker="w", features=b"features")
    setattr(unsteady, fault, True)
    for _ in range(4):
        recorder.called("small", CALL)
        with pytest.raises(StoreError):
            await recorder.flush()
    setattr(unsteady, fault, False)
    recorder.called("large", CALL)
    await recorder.flush()  # what was on its way
    await recorder.flush()  # what came after it
    assert await called(log) == {"small": sum([CALL] * 3, start=CALL), "large": CALL}


async def test_calls_wait_for_a_log_that_is_yet_to_be_seeded() -> None:
    """Not an error: the replica that would seed it comes after the recorder in a tick."""
    log = MemoryLog()
    recorder = Recorder(log, worker="w", features=b"features")
    recorder.called("small", CALL)
    recorder.decided("d", b"record")
    await recorder.flush()
    assert recorder.waiting == 0
    await log.seed(b"", START)
    recorder.called("small", CALL)
    await recorder.flush()
    await recorder.flush()
    assert await called(log) == {"small": CALL + CALL}


async def test_workers_count_side_by_side(log: MemoryLog) -> None:
    recorders = [Recorder(log, worker=f"w-{n}", features=b"features") for n in range(3)]
    for recorder in recorders * 2:
        recorder.called("small", CALL)
        await recorder.flush()
    assert (await called(log))["small"].calls == 6


def test_how_long_calls_took_is_folded_once_as_the_sum_of_its_calls() -> None:
    """A later call of the same worker is added to what is known by then, by age."""
    one = LatencyStatistics.of_call(first_byte_s=0.5, latency_s=2.5, tokens_out=100, at=1000.0)
    two = LatencyStatistics.of_call(first_byte_s=1.5, latency_s=2.5, tokens_out=10, at=1300.0)
    events = [
        Called("w", 0, {}, {"small": one}),
        Called("w", 1, {}, {"small": two}),
        Called("w", 1, {}, {"small": two}),
    ]
    state = State(b"features", 2)
    for n, event in enumerate(events):
        state = fold(state, f"{n}-1:", encode_called(event))
    assert state.latencies["small"] == one + two
    assert state.skipped == 1
    back = State.from_bytes(state.to_bytes())
    assert dict(back.latencies) == dict(state.latencies)


async def test_the_recorder_tells_how_long_calls_took_once(log: MemoryLog) -> None:
    took = LatencyStatistics.of_call(first_byte_s=0.5, latency_s=2.5, tokens_out=100, at=1000.0)
    recorder = Recorder(log, worker="w", features=b"features")
    recorder.called("small", CALL, took)
    recorder.called("small", CALL, took)
    await recorder.flush()
    recorder.called("large", CALL)
    await recorder.flush()
    told = [decode(entry.data) for entry in (await log.read(START, 10)).entries]
    assert told == [
        Called("w", 0, {"small": CALL + CALL}, {"small": took + took}, features=b"features"),
        Called("w", 1, {"large": CALL}, features=b"features"),
    ]


def answered(n: int) -> Answered:
    return Answered(np.array([1.0, n / 8]), 10, 10, 100 + n, 0.5, 0.5, 1000.0)


async def test_the_recorder_tells_how_long_the_first_few_answers_between_two_events_were(
    log: MemoryLog,
) -> None:
    recorder = Recorder(log, worker="w", features=b"features")
    for n in range(3):
        recorder.answered("small", answered(n))
    assert recorder.calls["small"].calls == 3  # summed before the others come
    for n in range(3, 3 * LENGTHS_TOLD):
        recorder.answered("small", answered(n))
    recorder.answered("large", answered(0)._replace(tokens_out=None))
    await recorder.flush()
    recorder.answered("small", answered(0))
    await recorder.flush()
    first, second = [decode(entry.data) for entry in (await log.read(START, 10)).entries]
    assert isinstance(first, Called)
    assert isinstance(second, Called)
    assert first.lengths == {"small": sample_of([answered(n) for n in range(LENGTHS_TOLD)], 99)}
    assert first.calls["small"].calls == 3 * LENGTHS_TOLD
    assert second.lengths == {"small": sample_of([answered(0)], 99)}
    assert first.features == second.features == b"features"


@pytest.mark.parametrize("arms", [1, LENGTHS_OF_ALL // 2, LENGTHS_OF_ALL, 3 * LENGTHS_OF_ALL])
async def test_an_event_of_many_arms_tells_less_of_each_and_something_of_every(
    log: MemoryLog, arms: int
) -> None:
    recorder = Recorder(log, worker="w", features=b"features")
    for arm in range(arms):
        for n in range(2 * LENGTHS_TOLD):
            unknown = n < LENGTHS_TOLD  # they take no place of those that are known
            recorder.answered(f"arm-{arm}", answered(n)._replace(**({"tokens_out": None} if unknown else {})))
    await recorder.flush()
    (event,) = [decode(entry.data) for entry in (await log.read(START, 10)).entries]
    assert isinstance(event, Called)
    assert {len(sample) for sample in event.lengths.values()} == {
        min(LENGTHS_TOLD, max(1, LENGTHS_OF_ALL // arms))
    }
    assert len(event.lengths) == arms


@pytest.mark.parametrize("features", [b"features", b"another!"])
def test_lengths_are_learned_once_from_features_of_this_version(features: bytes) -> None:
    told = sample_of([answered(1), answered(2)], 99)
    event = encode_called(Called("w", 0, {"small": CALL}, lengths={"small": told}, features=features))
    state = State(b"features", 2)
    for n in range(2):
        state = fold(state, f"{n}-1:", event)
    assert state.calls == {"small": CALL}
    back = State.from_bytes(state.to_bytes())
    assert back.digest() == state.digest()
    if features != b"features":
        assert not back.lengths
        return
    expected, kept = told.sums(2), back.lengths["small"]
    assert expected is not None
    np.testing.assert_array_equal(kept.xx, expected.xx)
    np.testing.assert_array_equal(kept.xr, expected.xr)
    assert (kept.n, kept.rr) == (2.0, expected.rr)
    assert not back.for_features(b"another!", 2).lengths


def test_lengths_with_too_many_features_are_no_reason_to_lose_what_calls_took() -> None:
    told = sample_of([answered(1)], 99)
    event = Called("w", 0, {"small": CALL}, lengths={"small": told}, features=b"features")
    state = fold(State(b"features", 3), "0-1:", encode_called(event))
    assert (dict(state.calls), dict(state.lengths), state.skipped) == ({"small": CALL}, {}, 0)


@pytest.mark.parametrize(
    "numbers", [[], [1.0] * 6, [-1.0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1e300], ["1"] * 7, None]
)
def test_times_that_no_calls_can_have_are_refused(numbers: Any) -> None:
    told = bytes([CALLED]) + orjson.dumps(["w", 0, {}, {"small": numbers}, {}, ""])
    with pytest.raises(MalformedError, match="a worker's sums"):
        decode(told)
