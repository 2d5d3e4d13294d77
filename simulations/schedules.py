"""Schedules: gateways, callers and a store that fails in every way we know, all drawn from one seed, and an account.

The gateways are the real ones (feedback.learning with its replica, intake, recorder and spool, on real files); only the
store, the clock, the disk's moment of truth and the order in which waiting calls go on are simulated. A seed is a
schedule: a failing one can be run again, as often as it takes.

    python -m simulations schedules --first 0 --count 300

What is held after each: all gateways hold one digest; every feedback that was answered `applied` (or `duplicate`, or
`revised`) counts exactly once, with the value given last; every `queued` one counts once or lies in the dead-letter file,
and that only if its decision is gone with the process that made it; nothing ever counts twice.
"""

import asyncio
import logging
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import orjson

from bandit.features import DIMENSION, TAG
from bandit.sources import ANCHOR
from bandit.statistics import CallStatistics
from feedback.events import CHARGED, RATED
from feedback.ids import new_id
from feedback.intake import FeedbackRefusedError, Value
from feedback.learning import Identity, Learning
from feedback.records import DecisionPrefix, encode_record
from feedback.spool import DEAD_LETTERS, Spool
from feedback.state import HALF_LIFE_S
from feedback.store import Answer, StoreError
from simulations.failing_store import FailingStore, KilledError, Turns

SCOPE: Final = "tenant.route"
SECRET: Final = b"the secret of all simulated sites"
WINDOW_S: Final = 3600.0
BEGIN_S: Final = 700 * HALF_LIFE_S  # a decision of this very moment weighs exactly one
GATEWAYS: Final = 3
STEPS: Final = 160
PATIENCE_S: Final = (
    600.0  # of schedules, whose gateways tick only now and then: longer than any of them pauses
)
ACKNOWLEDGED: Final = (Answer.APPLIED, Answer.REVISED, Answer.DUPLICATE)

T = TypeVar("T")
Slot = tuple[str, int, str, float]  # decision, kind, source, value


class ScheduleError(AssertionError):
    """The account of a schedule is wrong; the message names the seed."""


class NoPosterior:
    """A quality model for schedules, which never decide by what was learned, and its posterior."""

    anchor = ANCHOR

    def fit(self, ratings: Any, d: int, entry_prices: Any) -> Any:
        return self

    def steps(self, *_: Any) -> Any:
        return ()


class AtOnce(Executor):
    """Runs in the caller what a thread would run, so that a seed is a schedule."""

    def submit(self, work: Callable[..., T], /, *arguments: Any, **named: Any) -> "Future[T]":
        done: Future[T] = Future()
        try:
            done.set_result(work(*arguments, **named))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            done.set_exception(error)
        return done


class Disk:
    """Real files whose unsynced bytes a power cut takes away."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._durable = rng, dict[int, int]()

    def sync(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        self._durable[found.st_ino] = found.st_size

    def power_cut(self, folder: Path) -> None:
        """Every file of a machine keeps what was synced, and by chance some of what was not."""
        for path in sorted(folder.glob("*.spool")):
            size = path.stat().st_size
            kept = min(self._durable.get(path.stat().st_ino, 0), size)
            with path.open("r+b") as file:
                file.truncate(self._rng.randint(kept, size))


@dataclass(slots=True)
class Given:
    """One feedback as its caller sees it. answer: None while there is none; "queued", or the store's word."""

    decision: str
    kind: int
    source: str
    value: float
    key: str
    life: "Life"
    answer: str | None = None

    @property
    def slot(self) -> Slot:
        return self.decision, self.kind, self.source, self.value


@dataclass(slots=True)
class Life:
    """One process of a gateway, from its start to its end."""

    name: str
    folder: Path
    store: FailingStore
    spool: Spool
    learning: Learning
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    tick: asyncio.Task[Any] | None = None
    dead: bool = False
    lost_power: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """What a mutant may put in the place of the real thing. mutate: called on every gateway's learning as it starts."""

    store: type[FailingStore] = FailingStore
    sync: Callable[[Disk, int], None] = Disk.sync
    mutate: Callable[[Learning], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Account:
    """What a schedule that held was made of."""

    acknowledged: int
    queued: int
    dead_letters: int
    steps: "Counter[str]"


class Schedule:
    def __init__(self, seed: int, folder: Path, world: World) -> None:
        self.seed, self._folder, self._world = seed, folder, world
        self._rng = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self._now = BEGIN_S
        self._turns = Turns(self._rng)
        self._store = world.store(self._rng, self._turns, self.clock)
        self._disk = Disk(self._rng)
        self._lives: list[Life | None] = [None] * GATEWAYS
        self._all_lives: list[Life] = []
        self._made: dict[str, bytes] = {}
        self._given: list[Given] = []
        self._called = 0
        self._steps: Counter[str] = Counter()
        self._kinds: list[tuple[str, int, Callable[[], Coroutine[Any, Any, None]]]] = [
            ("decide", 20, self._decide),
            ("give", 36, self._give),
            ("tick", 30, self._tick),
            ("restart", 4, self._restart),
            ("kill", 2, self._kill),
            ("power cut", 1, self._power_cut),
            ("stop", 1, self._stop),
            ("failover", 3, self._failover),
            ("empty", 1, self._empty),
            ("freeze", 2, self._freeze),
            ("thaw", 8, self._thaw),
            ("wait", 2, self._wait),
        ]

    def clock(self) -> float:
        return self._now

    async def run(self) -> Account:
        for number in range(GATEWAYS):
            await self._start(number)
        for _ in range(STEPS):
            await self._step()
        await self._calm_down()
        self._hold_account()
        self._now += WINDOW_S + 1
        await self._rounds(3)
        return self._final_account()

    # ---- what happens

    async def _step(self) -> None:
        self._now += self._rng.choice([0.0, 0.1, 0.3, 1.0, 5.0])
        self._store.faults = 0.15 if self._rng.random() < 0.3 else 0.0
        ((name, _, step),) = self._rng.choices(self._kinds, [weight for _, weight, _ in self._kinds])
        self._steps[name] += 1
        await step()
        for _ in range(self._rng.randint(0, 6)):
            self._turns.release_one()
            await self._let_go_on()

    def _living(self) -> list[Life]:
        return [life for life in self._lives if life is not None]

    async def _decide(self) -> None:
        living = self._living()
        if not living:
            return
        life = self._rng.choice(living)
        decision = new_id(SECRET, SCOPE, now_s=self._now, entropy=self._rng.randbytes(8))
        x = np.array([1.0, *(self._rng.randint(-2, 2) for _ in range(DIMENSION - 1))])
        prefix = DecisionPrefix(decision, x, BEGIN_S, 0.5, TAG, b"policy!!", listed_in_nano_usd=1_000)
        self._made[decision] = encode_record(prefix)
        life.learning.routes[SCOPE].recorder.decided(decision, self._made[decision])
        life.learning.routes[SCOPE].recorder.called("any", CallStatistics(calls=1))
        self._called += 1

    async def _give(self) -> None:
        living = self._living()
        if not living or not self._made:
            return
        self._now += 0.001  # no two at the same moment: the later counts
        life = self._rng.choice(living)
        before = self._rng.choice(self._given) if self._given else None
        what = self._rng.random()
        if before is not None and what < 0.15:  # the caller sends the same again
            given = Given(before.decision, before.kind, before.source, before.value, before.key, life)
        elif before is not None and what < 0.3 and before.answer is not None:
            given = Given(before.decision, before.kind, before.source, self._value(), self._key(), life)
        else:
            decision = self._rng.choice(list(self._made)[-12:])
            kind, source = self._rng.choice([(RATED, "user"), (RATED, "judge:a"), (CHARGED, "application")])
            if any((g.decision, g.kind, g.source) == (decision, kind, source) for g in self._given):
                return
            given = Given(decision, kind, source, self._value(), self._key(), life)
        self._given.append(given)
        self._spawn(life, self._ask(life, given))
        await self._let_go_on()

    async def _ask(self, life: Life, given: Given) -> None:
        value = Value("rating", given.kind, given.source, given.value, given.key)
        try:
            (answer,) = await life.learning.intake.give(given.decision, [value])
        except FeedbackRefusedError as error:
            given.answer = f"refused {error.status}"
        else:
            given.answer = "queued" if answer is None else answer.value

    async def _tick(self) -> None:
        for life in self._rng.sample(
            self._living(), k=min(len(self._living()), self._rng.randint(1, GATEWAYS))
        ):
            if life.tick is None or life.tick.done():
                life.tick = self._spawn(life, _ticked(life.learning))
        await self._let_go_on()

    async def _restart(self) -> None:
        dead = [number for number, life in enumerate(self._lives) if life is None]
        if dead:
            await self._start(self._rng.choice(dead))

    async def _kill(self) -> None:
        if self._living() and self._store.seeded:  # else all that is known may be known to this one alone
            self._end(self._rng.choice(self._living()))
            await self._let_go_on()

    async def _power_cut(self) -> None:
        """A whole machine goes: all gateways that share its folder."""
        if not self._living() or not self._store.seeded:
            return
        folder = self._rng.choice(self._living()).folder
        for life in [life for life in self._all_lives if life.folder == folder]:
            life.lost_power = True  # if it has ended before, its file lies there still
            if not life.dead:
                self._end(life)
        self._disk.power_cut(folder)
        await self._let_go_on()

    async def _stop(self) -> None:
        """A clean end, as at a deployment."""
        if not self._living() or not self._store.seeded:
            return
        life = self._rng.choice(self._living())
        with self._turns.free():
            await asyncio.gather(*life.tasks, return_exceptions=True)
            await life.learning.close()
        self._forget(life)

    async def _failover(self) -> None:
        self._store.failover(lost=self._rng.randint(0, 30))

    async def _empty(self) -> None:
        if any(life.learning.routes[SCOPE].replica.state.events for life in self._living()):
            self._store.flush_all()

    async def _freeze(self) -> None:
        self._store.frozen = True

    async def _thaw(self) -> None:
        self._store.frozen = False

    async def _wait(self) -> None:
        self._now += self._rng.choice([20.0, 70.0, 200.0])

    # ---- how it happens

    async def _start(self, number: int) -> None:
        """Workers 0 and 1 share a machine, and so a spool's folder; worker 2 has one of its own."""
        folder = self._folder / ("one", "one", "two")[number]
        name = f"life-{len(self._all_lives)}"
        store = self._store
        spool = await Spool.open(
            folder,
            worker=name,
            clock=self.clock,
            sync=lambda fd: self._world.sync(self._disk, fd),
            disk=AtOnce(),
        )
        connection = store.connection(name)
        learning = Learning(
            connection,
            spool,
            {SCOPE: NoPosterior()},
            identity=Identity(name, [SECRET], WINDOW_S),
            clock=self.clock,
            patience_s=PATIENCE_S if self._all_lives else 0.0,
            ticks=self.clock,
        )
        self._world.mutate(learning)
        life = Life(name, folder, store, spool, learning)
        self._lives[number] = life
        self._all_lives.append(life)
        with self._turns.free():
            await learning.start()

    def _spawn(self, life: Life, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        life.tasks.add(task)
        task.add_done_callback(life.tasks.discard)
        task.add_done_callback(_seen)
        return task

    def _end(self, life: Life) -> None:
        """Nothing that runs in it goes on."""
        life.spool.abandon()
        self._store.cut_off(life.name)
        self._forget(life)

    def _forget(self, life: Life) -> None:
        life.dead = True
        self._lives[self._lives.index(life)] = None

    async def _let_go_on(self) -> None:
        """Everything runs that waits for nothing of ours."""
        for _ in range(5):
            await asyncio.sleep(0)

    async def _calm_down(self) -> None:
        """All faults end, every process runs, and time goes on until nothing changes any more."""
        self._store.faults, self._store.frozen = 0.0, False
        self._turns.let_all_go()
        for _ in range(12):
            await self._let_go_on()
        while any(life is None for life in self._lives):
            await self._restart()
        await self._rounds(12)

    async def _rounds(self, count: int) -> None:
        for _ in range(count):
            self._now += 60.0
            for life in self._living():
                await asyncio.gather(*life.tasks, return_exceptions=True)
                await _ticked(life.learning)

    # ---- what must be true then

    def _wrong(self, what: str) -> ScheduleError:
        return ScheduleError(f"seed {self.seed}: {what}")

    def _hold_account(self) -> None:
        states = [life.learning.routes[SCOPE].replica.state for life in self._living()]
        if len({state.digest() for state in states}) != 1:
            raise self._wrong(f"the replicas differ: {[(s.cursor, s.events) for s in states]}")
        state, waiting = states[0], self._waiting() | self._letters()
        for (decision, kind, source), given in _by_slot(self._given).items():
            counted, value = _counted(state, decision, kind, source)
            if counted > 1:
                raise self._wrong(f"{source} on {decision} counts {counted} times: {_told(given)}")
            answered = {g.answer for g in given} & {a.value for a in ACKNOWLEDGED}
            if counted == 0 and answered and not self._excused(given):
                raise self._wrong(f"{source} on {decision} was {answered} and is lost: {_told(given)}")
            if counted == 0 and "queued" in {g.answer for g in given} and not self._gone(decision):
                raise self._wrong(f"{source} on {decision} was queued and is stuck: {_told(given)}")
            possible = _possible(given, waiting)
            if counted == 1 and value not in possible:
                raise self._wrong(f"{source} on {decision} counts as {value}, not {possible}: {_told(given)}")
        calls = state.calls.get("any", CallStatistics()).calls
        if calls > self._called:
            raise self._wrong(f"{calls} calls were counted and {self._called} made")

    def _waiting(self) -> set[Slot]:
        """What no store has answered for yet."""
        intakes = [life.learning.intake for life in self._living()]
        payloads = [entry.payload for intake in intakes for entry in intake.waiting()]
        return {(p["id"], p["kind"], p["source"], p["value"]) for p in payloads}

    def _gone(self, decision: str) -> bool:
        """Nobody holds the decision any more: who made it died, and the store had not got it or lost it."""
        held = any(life.learning.routes[SCOPE].recorder.record_of(decision) for life in self._living())
        return not held and not self._store.holds(decision)

    def _excused(self, given: Sequence[Given]) -> bool:
        """The store took it back, its decision too, and the machine that had it on disk lost power in that moment."""
        return self._gone(given[0].decision) and any(g.life.lost_power for g in given)

    def _final_account(self) -> Account:
        """After the window nothing is left waiting, and what could not be joined lies there with its reason."""
        self._hold_account()
        if waiting := sum(life.learning.intake.unsettled for life in self._living()):
            raise self._wrong(f"{waiting} feedbacks still wait after the window")
        letters = self._letters()
        state = self._living()[0].learning.routes[SCOPE].replica.state
        for (decision, kind, source), given in _by_slot(self._given).items():
            counted, _ = _counted(state, decision, kind, source)
            queued = [g for g in given if g.answer == "queued"]
            if (
                counted == 0
                and queued
                and not any((decision, kind, source) == letter[:3] for letter in letters)
            ):
                raise self._wrong(f"{source} on {decision} was queued and is nowhere: {_told(given)}")
        answers = Counter(g.answer for g in self._given)
        acknowledged = sum(answers[a.value] for a in ACKNOWLEDGED)
        return Account(acknowledged, answers["queued"], len(letters), self._steps)

    def _letters(self) -> set[Slot]:
        lines = [
            line
            for folder in self._folder.iterdir()
            if (folder / DEAD_LETTERS).exists()
            for line in (folder / DEAD_LETTERS).read_bytes().splitlines()
        ]
        payloads = [orjson.loads(line)["payload"] for line in lines]
        return {(p["id"], p["kind"], p["source"], p["value"]) for p in payloads}

    def _value(self) -> float:
        return self._rng.randint(1, 511) / 512  # exact in every sum, and in nano-dollars

    def _key(self) -> str:
        return f"key-{len(self._given)}"


def run_schedule(seed: int, world: World | None = None) -> Account:
    """Raises ScheduleError where something is lost, doubled, stuck or different."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # every fault would be told, thousands of times
    try:
        with tempfile.TemporaryDirectory(dir=_quick_folder()) as folder:
            return asyncio.run(Schedule(seed, Path(folder), world or World()).run())
    finally:
        logging.disable(level)


def run_schedules(seeds: Sequence[int]) -> None:
    """Run them all and print what they were made of; ValueError naming the seeds that failed."""
    accounts, failed = [], []
    for seed in seeds:
        try:
            accounts.append(run_schedule(seed))
        except ScheduleError as error:
            failed.append(str(error))
    steps = sum((account.steps for account in accounts), Counter[str]())
    print(
        f"{len(seeds)} schedules: {sum(a.acknowledged for a in accounts)} feedbacks acknowledged, "
        f"{sum(a.queued for a in accounts)} queued, {sum(a.dead_letters for a in accounts)} dead letters; "
        f"{len(failed)} failed"
    )
    print("steps: " + ", ".join(f"{count} x {name}" for name, count in steps.most_common()))
    if failed:
        raise ValueError("; ".join(failed[:10]))


async def _ticked(learning: Learning) -> None:
    try:
        await learning.tick()
    except StoreError:
        return


def _seen(task: asyncio.Task[Any]) -> None:
    """A task of a killed process ends with KilledError; any other failure is the schedule's."""
    if (
        not task.cancelled()
        and task.exception() is not None
        and not isinstance(task.exception(), KilledError)
    ):
        task.get_loop().call_exception_handler(
            {"message": "failed", "exception": task.exception(), "task": task}
        )


def _by_slot(given: Sequence[Given]) -> dict[tuple[str, int, str], list[Given]]:
    slots: dict[tuple[str, int, str], list[Given]] = {}
    for one in given:
        slots.setdefault((one.decision, one.kind, one.source), []).append(one)
    return slots


def _counted(state: Any, decision: str, kind: int, source: str) -> tuple[int, float | None]:
    """How often the sums hold a feedback, and with which value: every decision is an arm of its own."""
    if kind == RATED:
        sums = state.ratings.get((decision, source))
        if sums is None or not sums.n:
            return 0, None
        weight = 2.0 ** ((state.epoch or 0) - BEGIN_S / HALF_LIFE_S)
        n = sums.n * weight
        return round(n), sums.xr[0] / sums.n
    calls = state.calls.get(decision, CallStatistics())
    return calls.reported_calls, calls.reported_nano_usd / 1e9 / max(calls.reported_calls, 1)


def _possible(given: Sequence[Given], waiting: set[Slot]) -> set[float]:
    """The values that may count in the end: the last that was answered for, or a later one without an answer."""
    words = {"queued", *(answer.value for answer in ACKNOWLEDGED)}
    answered = [n for n, g in enumerate(given) if g.answer in words and g.slot not in waiting]
    firsts = {g.key: n for n, g in reversed(list(enumerate(given)))}  # a key sent again changes nothing
    sure = [n for n in answered if firsts[given[n].key] == n]
    return {g.value for g in given[sure[-1] if sure else 0 :]}


def _told(given: Sequence[Given]) -> str:
    return ", ".join(f"{g.value} [{g.key}] at {g.life.name}: {g.answer}" for g in given)


def _quick_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - thousands of small files need no disk
