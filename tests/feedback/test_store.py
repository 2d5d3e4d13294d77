"""One suite over every implementation of the store protocol, on real servers; then what only a server can get wrong."""

import asyncio
import hashlib
import re
import struct
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from bandit.statistics import CallStatistics
from feedback.events import (
    CHARGED,
    RATED,
    Called,
    Charged,
    Rated,
    Reset,
    Withdrawn,
    decode,
    encode_called,
    encode_reset,
)
from feedback.learn import fold
from feedback.memory_store import MemoryStore
from feedback.records import DecisionPrefix, Explanation, encode_record
from feedback.redis_client import RedisClient
from feedback.redis_store import RedisStore
from feedback.state import START, State
from feedback.store import (
    RATINGS_PER_DECISION,
    Answer,
    Entry,
    Feedback,
    Log,
    Store,
    StoreError,
    StoreUnfitError,
    check_scope,
    mark_of,
    position,
    stream_id,
)

TTL_MS = 3_600_000
PATIENT_S = 10.0  # a busy machine is no broken store
PREFIX = DecisionPrefix("small", np.array([1.0, 0.5]), 1.79e9, 0.5, b"features", b"policy!!")
RECORD = encode_record(
    PREFIX, Explanation({"candidates": ["small"]}, np.ones(1), np.ones((1, 5), np.float32))
)
OTHER = encode_record(DecisionPrefix("large", np.ones(2), 1.79e9, 0.5, b"features", b"policy!!"))
EMPTY = State(b"features", 2)
T = TypeVar("T")
Client = Any  # redis types every answer as one of the synchronous and of the asynchronous client
OnServer = tuple[Log, Client, str]


def key(name: object) -> bytes:
    return hashlib.blake2b(str(name).encode(), digest_size=8).digest()


def rating(
    value: float | None = 0.5,
    name: object = "k",
    *,
    decision: str = "d",
    source: str = "user",
    record: bytes | None = None,
    kind: int = RATED,
) -> Feedback:
    return Feedback(decision, kind, source, value, key(name), record)


def fresh_scope() -> str:
    return f"tenant.{uuid.uuid4().hex}"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, decision_ttl_ms=TTL_MS, timeout_s=PATIENT_S)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["memory", "server"])
async def store(request: pytest.FixtureRequest, store_url: str) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    else:
        async with connected(store_url) as store:
            yield store


@pytest.fixture
async def server(store_url: str) -> AsyncIterator[Client]:
    async with Redis.from_url(store_url) as client:
        yield client


@pytest.fixture
async def log(store: Store) -> Log:
    """A log with nothing in it yet."""
    log = store.log(fresh_scope())
    assert await log.seed(b"seed", START)
    return log


async def entries(log: Log, after: str = START) -> Sequence[Entry]:
    return (await log.read(after, 1000)).entries


async def given(log: Log, *feedbacks: Feedback) -> list[Answer]:
    return [(await log.give_feedback(feedback)).answer for feedback in feedbacks]


async def appended(log: Log, data: bytes) -> str:
    token = await log.append(data)
    assert token is not None
    return token


async def values(log: Log) -> list[tuple[float, float | None]]:
    """What the ratings in the log say, and what they replace."""
    events = [decode(entry.data) for entry in await entries(log)]
    return [(event.quality, event.old) for event in events if isinstance(event, Rated)]


async def arms(log: Log) -> list[str]:
    events = [decode(entry.data) for entry in await entries(log)]
    return [event.decision.arm for event in events if isinstance(event, Rated | Charged)]


# ---- what a failover or an emptied store must not confuse


async def test_of_two_values_the_one_accepted_later_counts_in_whichever_order_they_arrive(log: Log) -> None:
    later = replace(rating(0.75, "later", record=RECORD), at=20.0)
    earlier = replace(rating(0.25, "earlier", record=RECORD), at=10.0)
    assert await given(log, later, earlier, earlier) == [Answer.APPLIED, Answer.DUPLICATE, Answer.DUPLICATE]
    assert await values(log) == [(0.75, None)]
    assert await given(log, replace(earlier, value=0.3)) == [Answer.CONFLICT]
    assert await given(log, replace(rating(0.5, "latest"), at=30.0, record=RECORD)) == [Answer.REVISED]
    assert (await values(log))[-1] == (0.5, 0.75)


async def test_a_sender_without_the_record_is_told_its_prefix(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    settled = await log.give_feedback(rating())
    assert settled.prefix == PREFIX.encode()
    assert (await log.give_feedback(rating(source="other", name="o", record=RECORD))).prefix == b""
    assert (await log.give_feedback(rating())).prefix == PREFIX.encode(), (
        "the first answer may have been lost"
    )


async def test_a_beacon_stands_behind_the_decisions_written_with_it(log: Log) -> None:
    assert await log.last_beacon("w") == -1
    assert await log.put_decisions({"d": RECORD}, ("w", 0)) == -1
    assert await log.put_decisions({"e": RECORD}, ("w", 3)) == 0
    assert await log.put_decisions({}, ("v", 7)) == -1
    assert [await log.last_beacon(worker) for worker in "wv"] == [3, 7]
    assert await log.put_decisions({"f": RECORD}) == -1


async def test_the_marks_of_a_log_name_every_feedback_in_it(log: Log) -> None:
    """Two fields for each: the slot with its newest value, the key with its own."""
    start = await log.marks(START, 100)
    assert (start.since, dict(start.fields)) == (START, {})
    feedbacks = [rating(n / 8, n, source=f"s{n}", record=RECORD) for n in range(4)]
    await given(log, *feedbacks)
    tokens = [entry.token for entry in await entries(log)]
    marks = await log.marks(tokens[-1], 100)
    assert marks.since == START
    assert {len(name) for name in marks.fields} == {9}
    assert len(marks.fields) == 8
    mark = mark_of(feedbacks[2])
    assert marks.fields[b"k" + mark[8:]] == struct.pack("<d", 0.25)
    assert marks.fields[b"s" + mark[:8]] == struct.pack("<dd", 0.0, 0.25) + stream_id(tokens[2]).encode()
    few = await log.marks(tokens[1], 100)
    assert len(few.fields) == 4, "up to the token and no further"


async def test_a_log_seeded_with_marks_knows_the_feedback_before_it(store: Store) -> None:
    first = store.log(fresh_scope())
    await first.seed(b"seed", START)
    await given(first, rating(0.25, "a", record=RECORD), rating(0.5, "b", source="other", record=RECORD))
    end = (await entries(first))[-1].token
    second = store.log(fresh_scope())
    assert await second.seed(b"seed", end, await first.marks(end, 100))
    again = [
        rating(0.25, "a", record=RECORD),
        rating(0.3, "a", record=RECORD),
        rating(0.75, "c", record=RECORD),
    ]
    assert await given(second, *again) == [Answer.DUPLICATE, Answer.CONFLICT, Answer.REVISED]
    assert await values(second) == [(0.75, 0.25)]
    assert await given(second, rating(0.25, "a")) == [Answer.DUPLICATE], "known without its record"
    marks = await second.marks((await entries(second))[-1].token, 100)
    assert (marks.since, len(marks.fields)) == (START, 5)


async def test_the_digest_stands_beside_its_snapshot(log: Log) -> None:
    token = await appended(log, b"event")
    assert (await log.read(START, 1)).digest is None
    assert await log.save_snapshot(b"state", token, base=START, digest="abc")
    tail = await log.read(START, 1)
    assert (tail.snapshot, tail.digest) == (token, "abc")


# ---- the log


async def test_there_is_no_log_before_it_is_seeded(store: Store) -> None:
    log = store.log(fresh_scope())
    tail = await log.read(START, 10)
    assert (tail.last, tail.snapshot, list(tail.entries)) == (None, None, [])
    assert await log.load_snapshot() is None
    assert await log.append(b"event") is None
    assert await given(log, rating(record=RECORD)) == [Answer.NOT_SEEDED]
    assert not await log.save_snapshot(b"state", "1-0:ab", base=START)
    assert (await log.read(START, 10)).last is None


async def test_a_log_is_seeded_once(store: Store) -> None:
    log = store.log(fresh_scope())
    assert await log.seed(b"first", START)
    assert not await log.seed(b"second", START)
    assert await log.load_snapshot() == b"first"
    await log.append(b"event")
    assert not await log.seed(b"third", START)
    assert await log.load_snapshot() == b"first"
    assert [entry.data for entry in await entries(log)] == [b"event"]


async def test_of_many_who_seed_one_succeeds(store: Store) -> None:
    log = store.log(fresh_scope())
    done = await asyncio.gather(*(log.seed(b"%d" % n, START) for n in range(20)))
    assert done.count(True) == 1
    assert await log.load_snapshot() == b"%d" % done.index(True)


async def test_each_entry_names_the_one_before_it(log: Log) -> None:
    tokens = [await appended(log, b"event %d" % n) for n in range(5)]
    previous = START
    for entry, token, n in zip(await entries(log), tokens, range(5), strict=True):
        digest = hashlib.sha1(previous.encode() + b"event %d" % n).hexdigest()[:16]
        assert (entry.previous, entry.token, entry.data) == (previous, token, b"event %d" % n)
        assert token.split(":")[1] == digest
        previous = token
    assert (await log.read(START, 10)).last == tokens[-1]
    assert sorted(map(position, tokens)) == list(map(position, tokens))


async def test_feedback_and_appends_are_links_of_one_chain(log: Log) -> None:
    tokens = [
        (await log.give_feedback(rating(0.5, record=RECORD))).token,
        await appended(log, b"event"),
        (await log.give_feedback(rating(0.25, "other", record=RECORD))).token,
    ]
    assert [entry.previous for entry in await entries(log)] == [START, *tokens[:-1]]
    assert [entry.token for entry in await entries(log)] == tokens


@pytest.mark.parametrize(
    "data", [b"", b"\0", bytes(range(256)), b"\r\n$5\r\n", "größe".encode(), b"x" * 60_000]
)
async def test_entries_are_bytes_and_come_back_as_they_went(log: Log, data: bytes) -> None:
    token = await appended(log, data)
    (entry,) = await entries(log)
    assert (entry.data, entry.token) == (data, token)


async def test_reading_in_pages_misses_nothing_and_repeats_nothing(log: Log) -> None:
    tokens = [await appended(log, b"%d" % n) for n in range(25)]
    read: list[Entry] = []
    after = START
    while page := (await log.read(after, 7)).entries:
        assert len(page) <= 7
        read += page
        after = page[-1].token
    assert [entry.token for entry in read] == tokens
    assert [entry.token for entry in await entries(log, tokens[11])] == tokens[12:]
    assert await entries(log, tokens[-1]) == []


async def test_routes_do_not_see_each_other(store: Store) -> None:
    one, other = store.log(fresh_scope()), store.log(fresh_scope())
    await one.seed(b"one", START)
    await one.put_decisions({"d": RECORD})
    assert (await other.read(START, 10)).last is None
    assert await other.get_decision("d") is None
    await other.seed(b"other", START)
    assert await given(other, rating()) == [Answer.UNKNOWN_DECISION]
    assert await one.load_snapshot() == b"one"


async def test_the_same_route_is_the_same_log(store: Store) -> None:
    scope = fresh_scope()
    await store.log(scope).seed(b"seed", START)
    token = await appended(store.log(scope), b"event")
    assert (await store.log(scope).read(START, 10)).last == token


async def test_a_log_that_was_seeded_late_goes_on_after_its_seed(store: Store) -> None:
    """The store that lost all may have a clock that is behind the one that gave the last id."""
    log, seed = store.log(fresh_scope()), "99999999999999-7:0123456789abcdef"
    assert await log.seed(b"state", seed)
    token = await appended(log, b"event")
    (entry,) = await entries(log, seed)
    assert (entry.previous, entry.token) == (seed, token)
    assert position(token) > position(seed)
    assert (await log.read(seed, 10)).snapshot == seed


@pytest.mark.parametrize(
    "scope", ["", "A.b", "a{b}", "a}b", "a b", ".a", "a:b", "a/b", "a\n", "é.b", "a" * 129, "{x}.y"]
)
async def test_a_scope_that_could_forge_another_is_refused(store: Store, scope: str) -> None:
    with pytest.raises(ValueError, match=r"no tenant\.route"):
        store.log(scope)


def test_a_scope_may_be_as_long_as_it_says() -> None:
    assert check_scope("a" * 128) == "a" * 128


# ---- decisions


async def test_a_decision_that_is_there_stays(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    await log.put_decisions({"d": OTHER, "e": OTHER})
    assert await log.get_decision("d") == RECORD
    assert await log.get_decision("e") == OTHER
    assert await log.get_decision("f") is None


async def test_writing_no_decisions_is_no_error(log: Log) -> None:
    await log.put_decisions({})


# ---- feedback


async def test_feedback_is_applied_once(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    settled = await log.give_feedback(rating(0.75))
    assert settled.answer is Answer.APPLIED
    (entry,) = await entries(log)
    assert entry.token == settled.token
    event = decode(entry.data)
    assert isinstance(event, Rated)
    assert (event.decision.arm, event.quality, event.old, event.source) == ("small", 0.75, None, "user")
    again = await log.give_feedback(rating(0.75))
    assert (again.answer, again.token) == (Answer.DUPLICATE, settled.token)
    assert len(await entries(log)) == 1


async def test_a_duplicate_answers_with_the_logs_end(log: Log) -> None:
    """Whoever has read that far has read the first one too."""
    await given(log, rating(0.75, record=RECORD))
    end = await appended(log, b"event")
    assert (await log.give_feedback(rating(0.75, record=RECORD))).token == end


async def test_a_new_key_revises_and_the_entry_carries_the_value_it_replaces(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    assert await given(log, rating(0.25, "first"), rating(0.75, "second"), rating(0.5, "third")) == [
        Answer.APPLIED,
        Answer.REVISED,
        Answer.REVISED,
    ]
    assert await values(log) == [(0.25, None), (0.75, 0.25), (0.5, 0.75)]


async def test_an_old_key_sent_again_after_a_revision_is_a_duplicate(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    answers = await given(log, rating(0.25, "first"), rating(0.75, "second"), rating(0.25, "first"))
    assert answers[-1] is Answer.DUPLICATE
    assert await given(log, rating(0.75, "second")) == [Answer.DUPLICATE]
    assert len(await entries(log)) == 2


async def test_a_key_used_again_with_another_value_is_a_conflict(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    settled = [await log.give_feedback(rating(value)) for value in (0.25, 0.75)]
    assert settled[1].answer is Answer.CONFLICT
    assert settled[1].token == ""
    assert len(await entries(log)) == 1
    assert await given(log, rating(0.25)) == [Answer.DUPLICATE]


async def test_the_first_value_may_be_zero(log: Log) -> None:
    answers = await given(
        log, rating(0.0, record=RECORD), rating(0.0, record=RECORD), rating(1.0, "r", record=RECORD)
    )
    assert answers == [Answer.APPLIED, Answer.DUPLICATE, Answer.REVISED]
    assert await values(log) == [(0.0, None), (1.0, 0.0)]


async def test_sources_and_kinds_do_not_revise_one_another(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    answers = await given(
        log,
        rating(0.25, 1, source="user"),
        rating(0.75, 2, source="judge:a"),
        rating(0.5, 3, source="judge:b"),
        rating(0.5, 4, source="user", kind=CHARGED),
    )
    assert answers == [Answer.APPLIED] * 4
    assert await values(log) == [(0.25, None), (0.75, None), (0.5, None)]
    assert len(await entries(log)) == 4


async def test_decisions_do_not_share_their_keys(log: Log) -> None:
    await log.put_decisions({"d": RECORD, "e": OTHER})
    assert await given(log, rating(0.25, decision="d"), rating(0.75, decision="e")) == [Answer.APPLIED] * 2
    assert await arms(log) == ["small", "large"]


async def test_an_unknown_decision_changes_nothing(log: Log) -> None:
    assert await given(log, rating()) == [Answer.UNKNOWN_DECISION]
    assert await given(log, rating(record=b"")) == [Answer.UNKNOWN_DECISION]
    assert await entries(log) == []
    await log.put_decisions({"d": RECORD})
    assert await given(log, rating()) == [Answer.APPLIED]


async def test_a_carried_record_stands_in_until_the_decision_is_there(log: Log) -> None:
    assert await given(log, rating(0.25, "first", record=RECORD)) == [Answer.APPLIED]
    await log.put_decisions({"d": RECORD})
    assert await given(log, rating(0.25, "first"), rating(0.75, "second")) == [
        Answer.DUPLICATE,
        Answer.REVISED,
    ]


async def test_the_stored_record_goes_before_a_carried_one(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    await given(log, rating(record=OTHER))
    assert await arms(log) == ["small"]


async def test_only_the_prefix_of_a_record_enters_the_log(log: Log) -> None:
    await given(log, rating(0.5, record=RECORD))
    (entry,) = await entries(log)
    assert entry.data == b"\x01\x00" + PREFIX.encode() + struct.pack("<dd", 0.5, 0.0) + b"\0user"
    assert len(RECORD) > len(PREFIX.encode())


@pytest.mark.parametrize(
    "record",
    [
        RECORD[:1],
        RECORD[:63],
        RECORD[: len(PREFIX.encode()) - 1],
        b"\x01" + RECORD[1:],
        b"\x02\x00\x08\x00aaaa",
        RECORD[:2] + b"\x10\x00" + RECORD[4:],
        RECORD[:4] + b"\x03\x00" + RECORD[6:],
        RECORD[:6] + b"\xff\xff" + RECORD[8:],
        bytes(200),
    ],
)
async def test_a_record_whose_lengths_do_not_fit_is_refused_stored_or_carried(
    log: Log, record: bytes
) -> None:
    assert await given(log, rating(record=record)) == [Answer.MALFORMED]
    await log.put_decisions({"d": record})
    assert await given(log, rating()) == [Answer.MALFORMED]
    assert await entries(log) == []


@pytest.mark.parametrize("sources", [["user"], ["user", "judge:a", "judge:b"]])
async def test_a_decision_takes_so_many_feedbacks_and_no_more(log: Log, sources: list[str]) -> None:
    await log.put_decisions({"d": RECORD})
    feedbacks = [
        rating(n / 100, n, source=sources[n % len(sources)]) for n in range(RATINGS_PER_DECISION + 3)
    ]
    answers = Counter(await given(log, *feedbacks))
    assert answers[Answer.TOO_MANY] == 3
    assert answers[Answer.APPLIED] == len(sources)
    assert len(await entries(log)) == RATINGS_PER_DECISION
    assert await given(log, feedbacks[0]) == [Answer.DUPLICATE]


async def test_a_withdrawal_takes_back_what_counts_now_and_says_where_it_was_first_given(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    first = await log.give_feedback(rating(0.25, "a"))
    other = await log.give_feedback(rating(1.0, "j", source="judge:x"))
    assert await given(log, rating(0.75, "b"), rating(None, "c")) == [Answer.REVISED, Answer.WITHDRAWN]
    events = [decode(entry.data) for entry in await entries(log)]
    revised, withdrawn = events[2:]
    assert isinstance(revised, Rated)
    assert isinstance(withdrawn, Withdrawn)
    assert revised.origin == withdrawn.origin == position(first.token)
    assert (withdrawn.quality, withdrawn.source) == (0.75, "user")
    assert other.token
    assert await given(log, rating(0.5, "e"), rating(0.75, "f")) == [Answer.APPLIED, Answer.REVISED]
    again = decode((await entries(log))[-1].data)
    assert isinstance(again, Rated)
    assert again.origin == position((await entries(log))[-2].token)  # not where the withdrawn one was


async def test_a_withdrawal_counts_once_and_there_must_be_something_to_withdraw(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    assert await given(log, rating(None, "w")) == [Answer.NOTHING_GIVEN]
    assert await entries(log) == []
    assert await given(log, rating(0.5, "a"), rating(None, "w"), rating(None, "w")) == [
        Answer.APPLIED,
        Answer.WITHDRAWN,
        Answer.DUPLICATE,
    ]
    assert await given(log, rating(None, "v"), rating(0.5, "w"), rating(0.5, "a")) == [
        Answer.NOTHING_GIVEN,
        Answer.CONFLICT,
        Answer.DUPLICATE,
    ]
    assert len(await entries(log)) == 2


async def test_of_many_appends_with_one_key_one_takes_place(log: Log) -> None:
    before = await appended(log, b"before")
    tokens = await asyncio.gather(*(log.append(b"%d" % n, once="alarm:1") for n in range(10)))
    assert len(set(tokens)) == 1
    assert [entry.token for entry in await entries(log)] == [before, tokens[0]]
    assert await log.append(b"other", once="alarm:2") not in {None, tokens[0]}
    assert await appended(log, b"no key") != await appended(log, b"no key")
    assert await log.append(b"late", once="alarm:1") == tokens[0]


async def test_the_same_feedback_sent_by_many_at_once_counts_once(log: Log) -> None:
    await log.put_decisions({"d": RECORD})
    settled = await asyncio.gather(*(log.give_feedback(rating()) for _ in range(30)))
    assert Counter(s.answer for s in settled) == {Answer.APPLIED: 1, Answer.DUPLICATE: 29}
    assert len(await entries(log)) == 1


async def test_a_burst_of_feedback_waits_for_its_turn(log: Log) -> None:
    answers = await asyncio.gather(
        *(log.give_feedback(rating(decision=f"d-{n}", record=RECORD)) for n in range(400))
    )
    assert {settled.answer for settled in answers} == {Answer.APPLIED}
    assert len(await entries(log)) == 400


# ---- snapshots


async def test_a_snapshot_replaces_the_one_it_was_made_from(log: Log) -> None:
    tokens = [await appended(log, b"%d" % n) for n in range(3)]
    assert await log.save_snapshot(b"at 0", tokens[0], base=START)
    assert await log.save_snapshot(b"at 2", tokens[2], base=tokens[0])
    assert await log.load_snapshot() == b"at 2"
    assert (await log.read(START, 10)).snapshot == tokens[2]


async def test_a_snapshot_is_refused_unless_it_leads_on_from_the_stored_one(log: Log) -> None:
    tokens = [await appended(log, b"%d" % n) for n in range(3)]
    assert await log.save_snapshot(b"at 1", tokens[1], base=START)
    stranger = tokens[2].split(":", maxsplit=1)[0] + ":0000000000000000"
    beyond = f"{position(tokens[2])[0] + 1}-0:0000000000000000"
    refused = [
        (tokens[2], START),  # another was saved meanwhile
        (tokens[2], tokens[0]),
        (tokens[2], tokens[2]),
        (tokens[0], tokens[1]),  # older than the stored one
        (tokens[1], tokens[1]),  # the same
        (stranger, tokens[1]),  # the id is in the log with another history
        (beyond, tokens[1]),  # not in the log
        (START, tokens[1]),
    ]
    for token, base in refused:
        assert not await log.save_snapshot(b"refused", token, base=base), (token, base)
    assert await log.load_snapshot() == b"at 1"
    assert (await log.read(START, 10)).snapshot == tokens[1]
    assert await log.save_snapshot(b"at 2", tokens[2], base=tokens[1])


async def test_of_many_who_save_on_one_base_one_succeeds(log: Log) -> None:
    tokens = [await appended(log, b"%d" % n) for n in range(10)]
    done = await asyncio.gather(*(log.save_snapshot(t.encode(), t, base=START) for t in tokens))
    assert done.count(True) == 1
    assert await log.load_snapshot() == tokens[done.index(True)].encode()


async def test_entries_that_a_snapshot_covers_stay_readable_for_slow_replicas(log: Log) -> None:
    tokens = [await appended(log, b"%d" % n) for n in range(300)]
    assert await log.save_snapshot(b"state", tokens[-2], base=START)
    assert await log.save_snapshot(b"state", tokens[-1], base=tokens[-2])
    assert [entry.token for entry in await entries(log)] == tokens


# ---- the two implementations side by side


ORIGIN = re.compile(rb"(\d+-\d+)(?=\0(?:user|judge:a)\Z)")


def numbered(log: Sequence[Entry]) -> list[bytes]:
    """The entries' bytes, the stream id in them that of an entry's number; of an entry that was lost before, of the time
    before all entries.
    """
    numbers = {stream_id(entry.token).encode(): b"%d-0" % n for n, entry in enumerate(log, 1)}
    return [ORIGIN.sub(lambda found: numbers.get(found[1], b"0-1"), entry.data) for entry in log]


class SideBySide(RuleBasedStateMachine):
    """The same operations on both stores: the same answers, the same entries, which can be folded."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = self.run(self.connect())
        scope = fresh_scope()
        self.logs: list[Log] = [MemoryStore().log(scope), self.redis.log(scope)]
        self.snapshots = [START, START]

    async def connect(self) -> RedisStore:
        return RedisStore(self.url, decision_ttl_ms=TTL_MS, timeout_s=PATIENT_S)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def both(self, ask: Callable[[Log], Coroutine[Any, Any, T]]) -> tuple[T, T]:
        one, other = (self.run(ask(log)) for log in self.logs)
        return one, other

    @initialize(late=st.booleans())
    def begin(self, late: bool) -> None:
        if not late:
            self.seed()

    @rule()
    def seed(self) -> None:
        one, other = self.both(lambda log: log.seed(EMPTY.to_bytes(), START))
        assert one == other

    @rule(decision=st.sampled_from("de"), record=st.sampled_from([RECORD, OTHER, RECORD[:70]]))
    def decide(self, decision: str, record: bytes) -> None:
        self.both(lambda log: log.put_decisions({decision: record}))
        one, other = self.both(lambda log: log.get_decision(decision))
        assert one == other

    @rule(
        decision=st.sampled_from("def"),
        source=st.sampled_from(["user", "judge:a"]),
        kind=st.sampled_from([RATED, CHARGED]),
        value=st.sampled_from([0.0, 0.25, 1.0, None]),
        name=st.integers(0, 5),
        at=st.sampled_from([0.0, 1.0, 2.0]),
        record=st.sampled_from([None, None, RECORD, OTHER, b"\x01" * 70]),
    )
    def rate(
        self,
        decision: str,
        source: str,
        kind: int,
        value: float | None,
        name: int,
        at: float,
        record: bytes | None,
    ) -> None:
        feedback = Feedback(decision, kind, source, value, key((name, source, kind)), record, at)
        one, other = self.both(lambda log: log.give_feedback(feedback))
        assert (one.answer, one.prefix) == (other.answer, other.prefix)
        assert bool(one.token) == bool(other.token)

    @rule(worker=st.sampled_from("vw"), sequence=st.integers(0, 9))
    def beacon(self, worker: str, sequence: int) -> None:
        one, other = self.both(lambda log: log.put_decisions({}, (worker, sequence)))
        assert one == other
        one, other = self.both(lambda log: log.last_beacon(worker))
        assert one == other == sequence

    @rule()
    def lose_everything(self) -> None:
        """Both are emptied and begun again with what they held: state, end and marks."""
        ends = [self.run(log.read(START, 1)).last for log in self.logs]
        if None in ends:
            return
        marks = [self.run(log.marks(end, 100)) for log, end in zip(self.logs, ends, strict=True)]
        one, other = ({k: v[:16] for k, v in held.fields.items()} for held in marks)
        assert one == other, "but for the ids of the entries, which a server's clock gives"
        scope = fresh_scope()
        self.logs = [MemoryStore().log(scope), self.redis.log(scope)]
        for log, end, held in zip(self.logs, ends, marks, strict=True):
            assert self.run(log.seed(b"seed", end, held))
        self.snapshots = list(ends)

    @rule(worker=st.sampled_from("vw"), sequence=st.integers(0, 4), data=st.none() | st.binary(max_size=40))
    def append(self, worker: str, sequence: int, data: bytes | None) -> None:
        entry = data or encode_called(Called(worker, sequence, {"small": CallStatistics(calls=1)}))
        one, other = self.both(lambda log: log.append(entry))
        assert (one is None) == (other is None)

    @rule(arm=st.sampled_from(["small", "large"]), once=st.sampled_from(["", "a", "b"]))
    def reset(self, arm: str, once: str) -> None:
        entry = encode_reset(Reset(arm, None, 0.5, "operator", 1.79e9))
        one, other = self.both(lambda log: log.append(entry, once=once))
        assert (one is None) == (other is None)

    @precondition(lambda self: self.count() > 0)
    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, self.count() - 1))
        stale = data.draw(st.booleans())
        saved = []
        for n, log in enumerate(self.logs):
            token = self.run(entries(log))[at].token
            base = "1-1:stale" if stale else self.snapshots[n]
            saved.append(self.run(log.save_snapshot(b"state %d" % at, token, base=base)))
            if saved[-1]:
                self.snapshots[n] = token
        assert saved[0] == saved[1]
        one, other = self.both(lambda log: log.load_snapshot())
        assert one == other

    def count(self) -> int:
        return len(self.run(entries(self.logs[0])))

    @invariant()
    def the_logs_say_the_same(self) -> None:
        one, other = (numbered(log) for log in self.both(entries))
        assert one == other
        state = EMPTY
        for number, data in enumerate(one, 1):
            state = fold(state, f"{number}-0:", data)

    def teardown(self) -> None:
        self.run(self.redis.close())
        self.runner.close()


def test_memory_and_server_answer_alike_whatever_is_asked(store_url: str) -> None:
    class OnThisServer(SideBySide):
        url = store_url

    run_state_machine_as_test(
        OnThisServer, settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
    )


# ---- what only a server can get wrong


@pytest.fixture
async def on_server(server: Client, store_url: str) -> AsyncIterator[OnServer]:
    """A log in a server, with a client of our own to look behind it."""
    async with connected(store_url) as store:
        scope = fresh_scope()
        log = store.log(scope)
        await log.seed(b"seed", START)
        yield log, server, f"lr:{{{scope}}}"


async def test_decisions_and_their_feedback_expire_and_the_log_does_not(on_server: OnServer) -> None:
    log, client, base = on_server
    await log.put_decisions({"d": RECORD})
    await given(log, rating())
    assert 0 < await client.pttl(f"{base}:d:d") <= TTL_MS
    assert TTL_MS < await client.pttl(f"{base}:f:d") <= 2 * TTL_MS, "what is sent again is always recognised"
    await client.pexpire(f"{base}:f:d", 1000)
    await given(log, rating(0.75, "second"))
    assert await client.pttl(f"{base}:f:d") > 1000  # the window of the last feedback
    assert [await client.pttl(f"{base}:{name}") for name in ("log", "meta", "snap")] == [-1] * 3


async def test_a_decision_written_again_does_not_live_longer(on_server: OnServer) -> None:
    log, client, base = on_server
    await log.put_decisions({"d": RECORD})
    await client.pexpire(f"{base}:d:d", 1000)
    await log.put_decisions({"d": RECORD})
    assert await client.pttl(f"{base}:d:d") <= 1000


async def test_all_keys_of_a_route_share_one_slot(on_server: OnServer) -> None:
    log, client, base = on_server
    await log.put_decisions({"d": RECORD}, ("worker", 0))
    await given(log, rating())
    keys = [name async for name in client.scan_iter(match=f"{base[:-1]}*")]
    assert len(keys) == 7
    assert len({name[name.index(b"{") : name.index(b"}")] for name in keys}) == 1


async def test_a_server_that_forgot_its_scripts_is_told_them_again(on_server: OnServer) -> None:
    log, client, _ = on_server
    assert await log.append(b"one") is not None
    await client.script_flush()
    assert await log.append(b"two") is not None
    assert len(await entries(log)) == 2


async def test_a_full_server_takes_a_feedback_whole_or_not_at_all(on_server: OnServer) -> None:
    log, client, base = on_server
    await log.put_decisions({"d": RECORD})
    await given(log, rating(0.25, "first"))
    was = (await client.config_get("maxmemory"))["maxmemory"]
    await client.config_set("maxmemory", 1)
    try:
        (entry,) = await entries(log)
        for ask in (
            lambda: log.give_feedback(rating(0.75, "second")),
            lambda: log.append(b"event"),
            lambda: log.put_decisions({"e": RECORD}),
            lambda: log.save_snapshot(b"state", entry.token, base=START),
        ):
            with pytest.raises(StoreError, match=r"OutOfMemory|OOM"):
                await ask()
        assert len(await entries(log)) == 1  # and reading goes on
        assert await client.hlen(f"{base}:f:d") == 3
        assert (await log.read(START, 10)).snapshot == START
    finally:
        await client.config_set("maxmemory", was)
    assert await given(log, rating(0.75, "second"), rating(0.25, "first")) == [
        Answer.REVISED,
        Answer.DUPLICATE,
    ]


async def test_old_entries_that_two_snapshots_cover_are_trimmed(on_server: OnServer) -> None:
    """Ids of 1970: older than any time for which covered entries are kept."""
    log, client, base = on_server
    last, tokens = START, []
    for n in range(1, 301):
        digest = hashlib.sha1(last.encode() + b"event").hexdigest()[:16]
        await client.xadd(f"{base}:log", {"p": last, "e": b"event"}, id=f"{n}-0")
        last = f"{n}-0:{digest}"
        tokens.append(last)
    await client.hset(f"{base}:meta", "last", last)
    newest = await appended(log, b"now")
    assert await log.save_snapshot(b"state", tokens[249], base=START)
    assert len(await entries(log)) == 301
    assert await log.save_snapshot(b"state", newest, base=tokens[249])
    left = await entries(log)
    assert len(left) < 301
    assert [entry.token for entry in left][-52:] == [*tokens[249:], newest]


async def test_a_probe_tells_the_version_of_a_fit_server(server: Client, store_url: str) -> None:
    async with connected(store_url) as store:
        info = await server.info()
        assert await store.probe() == info.get("valkey_version", info["redis_version"])


async def test_a_server_that_evicts_is_unfit(server: Client, store_url: str) -> None:
    await server.config_set("maxmemory-policy", "allkeys-lru")
    try:
        async with connected(store_url) as store:
            with pytest.raises(StoreUnfitError, match="noeviction"):
                await store.probe()
    finally:
        await server.config_set("maxmemory-policy", "noeviction")


async def test_a_cancellation_that_the_client_forgets_ends_the_call_all_the_same(store_url: str) -> None:
    """Python 3.11's wait_for gives the result when both come at once; whoever polls would have gone on for ever."""

    async def written() -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "written"

    client = RedisClient(store_url, timeout_s=PATIENT_S)
    asked = asyncio.create_task(client.route().ask(written))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await client.close()


async def test_a_server_that_is_not_there_is_a_store_error_whatever_is_asked(tmp_path: Path) -> None:
    async with connected(f"unix://{tmp_path / 'nobody'}") as store:
        log = store.log("tenant.route")
        for ask in (
            store.probe,
            lambda: log.put_decisions({"d": RECORD}),
            lambda: log.get_decision("d"),
            lambda: log.give_feedback(rating()),
            lambda: log.append(b"event"),
            lambda: log.read(START, 1),
            lambda: log.seed(b"", START),
            lambda: log.save_snapshot(b"", "1-0:", base=START),
            log.load_snapshot,
        ):
            with pytest.raises(StoreError):
                await ask()


async def test_a_server_that_hangs_up_in_mid_answer_is_a_store_error_and_then_forgotten(
    tmp_path: Path,
) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"*2\r\n$3\r\nab")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_unix_server(hang_up, tmp_path / "socket")
    async with listener, connected(f"unix://{tmp_path / 'socket'}") as store:
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.log("tenant.route").read(START, 1)


async def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_unix_server(say_nothing, tmp_path / "socket")
    store = RedisStore(f"unix://{tmp_path / 'socket'}", decision_ttl_ms=TTL_MS, timeout_s=0.01)
    async with listener:
        with pytest.raises(StoreError, match="Timeout"):
            await store.log("tenant.route").append(b"event")
        await store.close()
