"""The tick: every step is taken whatever became of the others, and only a store that is gone is revived."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bandit.features import DIMENSION, TAG
from bandit.quality import SharedBaseline
from bandit.statistics import CallStatistics
from feedback.events import RATED, Called, encode_called
from feedback.learning import Identity, Learning
from feedback.memory_store import MemoryStore
from feedback.records import DecisionPrefix, encode_record
from feedback.spool import Spool
from feedback.store import Feedback, Log, StoreError, StoreGoneError

NOW = 1.79e9


class OneSickRoute(MemoryStore):
    """The route `sick` fails as told; every other route is well."""

    def __init__(self, failing: str, error: StoreError) -> None:
        super().__init__()
        self.failing, self.error = failing, error

    def log(self, scope: str) -> Any:
        log = super().log(scope)
        return SickLog(log, self.failing, self.error) if scope.endswith("sick") else log


class SickLog:
    def __init__(self, log: Log, failing: str, error: StoreError) -> None:
        self.well, self.failing, self.error = log, failing, error

    def __getattr__(self, name: str) -> Any:
        if name != self.failing:
            return getattr(self.well, name)

        async def fail(*_: Any, **__: Any) -> None:
            raise self.error

        return fail


async def learning(folder: Path, failing: str, error: StoreError, revive: Any = None) -> Learning:
    spool = await Spool.open(folder, worker="w", clock=lambda: NOW)
    return Learning(
        OneSickRoute(failing, error),
        spool,
        {"t.sick": SharedBaseline(), "t.well": SharedBaseline()},
        identity=Identity("w", [b"s" * 32], 3600.0),
        clock=lambda: NOW,
        revive=revive,
    )


@pytest.mark.parametrize("failing", ["read", "put_decisions", "append"])
async def test_one_sick_route_is_no_other_routes_business(tmp_path: Path, failing: str) -> None:
    both = await learning(tmp_path, failing, StoreError("damaged"))
    await both.start()
    for route in both.routes.values():
        route.recorder.decided("rt-x", b"record")
        route.recorder.called("arm", CallStatistics(calls=1, tokens_out=9))
    with pytest.raises(StoreError, match="damaged"):
        await both.tick()
    assert both.routes["t.well"].recorder.waiting == 0
    assert both.routes["t.well"].replica.state.calls["arm"].tokens_out == 9
    await both.close()


async def test_a_store_that_takes_no_more_decisions_is_still_read(tmp_path: Path) -> None:
    full = await learning(tmp_path, "put_decisions", StoreError("OOM"))
    await full.start()
    sick = full.routes["t.sick"]
    sick.recorder.decided("rt-x", b"record")
    await sick.log.append(encode_called(Called("another", 0, {"arm": CallStatistics(calls=4)})))
    with pytest.raises(StoreError, match="OOM"):
        await full.tick()
    assert sick.replica.state.calls["arm"].calls == 4
    await full.close()


@pytest.mark.parametrize(("error", "revived"), [(StoreError("slow"), 0), (StoreGoneError("refused"), 2)])
async def test_only_a_store_that_is_gone_is_revived(tmp_path: Path, error: StoreError, revived: int) -> None:
    """Asking a hung server whether it lives would hold up every request that asks for its answer meanwhile."""
    calls: list[int] = []
    away = await learning(tmp_path, "read", error, revive=lambda: calls.append(1))
    await away.start()
    await away.start()
    assert len(calls) == revived
    assert away.store_error == str(error)
    await away.close()


async def test_an_operators_reset_is_done_once_by_its_key(tmp_path: Path) -> None:
    both = await learning(tmp_path, "nothing", StoreError("never"))
    await both.start()
    assert await both.reset("t.well", "small", factor=0.5, key="incident 7")
    assert await both.reset("t.well", "small", factor=0.1, key="incident 7")
    assert await both.reset("t.well", "small", source="user", factor=0.0, key="incident 8")
    await both.tick()
    cuts = both.routes["t.well"].replica.state.cuts
    assert [(cut.arm, cut.source, cut.factor, cut.cause) for cut in cuts] == [
        ("small", None, 0.5, "operator"),
        ("small", "user", 0.0, "operator"),
    ]
    with pytest.raises(ValueError, match="a share from 0 to 1"):
        await both.reset("t.well", "small", factor=2.0, key="incident 9")
    await both.close()


async def test_operators_read_of_a_reset_in_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = await learning(tmp_path, "nothing", StoreError("never"))
    await both.start()
    await both.reset("t.well", "small", factor=0.02, key="incident 7")
    await both.tick()
    await both.tick()
    assert [record.message for record in caplog.records] == [
        "t.well: 2 % is kept of what was learned of small by all sources (operator)"
    ]
    await both.close()


async def test_what_was_learned_of_other_features_waits_until_they_are_used_again(tmp_path: Path) -> None:
    """An embedder is tried, and given up: neither sees the other's ratings, and nothing is lost."""
    store = MemoryStore()

    async def with_features(features: bytes, ratings: int) -> tuple[int, int]:
        """So many ratings are given; what is known before and after."""
        learning = Learning(
            store,
            await Spool.open(tmp_path / features.hex(), worker="w", clock=lambda: NOW),
            {"t.auto": SharedBaseline()},
            identity=Identity("w", [b"s" * 32], 3600.0),
            clock=lambda: NOW,
            features=features,
        )
        await learning.start()
        await learning.tick()
        route = learning.routes["t.auto"]
        before = route.replica.state.rated
        for n in range(ratings):
            prefix = DecisionPrefix("small", np.eye(1, DIMENSION)[0], NOW, 0.5, features, b"policy!!")
            rating = Feedback(f"{before}-{n}", RATED, "user", 1.0, b"%08d" % n, encode_record(prefix))
            await route.log.give_feedback(rating)
        await learning.tick()
        assert route.replica.state.features == features
        assert route.replica.state.skipped == 0
        await learning.close()
        return before, route.replica.state.rated

    assert await with_features(TAG, 3) == (0, 3)
    assert await with_features(b"embedded", 2) == (0, 2)
    assert await with_features(TAG, 1) == (3, 4)
    assert await with_features(b"embedded", 0) == (2, 2)
