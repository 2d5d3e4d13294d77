"""`python -m service store ...` over a real log, whole and harmed."""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from bandit.features import DIMENSION, TAG
from bandit.quality import SharedBaseline
from feedback.events import RATED
from feedback.records import DecisionPrefix, encode_record
from feedback.redis_store import RedisStore
from feedback.replica import Replica
from feedback.store import Feedback
from service.__main__ import main

CONFIG = """
models:
  small: {base_url: http://127.0.0.1:9, price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 1}
routes:
  auto: {models: [small], strategy: fixed}
store: {url: "%s", key_prefix: "%s"}
"""


class Place:
    """A store with one route's log of ten ratings and a snapshot in the middle."""

    def __init__(self, url: str, folder: Path) -> None:
        self.prefix, self.folder, self.url = f"p{uuid.uuid4().hex[:8]}", folder, url
        self.config = folder / "gateway.yaml"
        self.config.write_text(CONFIG % (url, self.prefix))
        self.base = f"{self.prefix}:{{default.auto}}"
        self.client = redis.Redis.from_url(url)
        asyncio.run(self.fill())

    async def fill(self) -> None:
        now = 0.0
        store = RedisStore(self.url, prefix=self.prefix, decision_ttl_ms=60_000, timeout_s=10.0)
        log = store.log("default.auto")
        replica = Replica(log, SharedBaseline(), clock=lambda: now)
        await replica.poll()
        for n in range(10):
            prefix = DecisionPrefix("small", np.eye(1, DIMENSION)[0], 1.79e9, 0.5, TAG, b"policy!!")
            record = encode_record(prefix)
            await log.give_feedback(Feedback(f"d{n}", RATED, "user", n / 10, b"%08d" % n, record))
            if n == 4:
                now += 100.0
                await replica.poll()
        await store.close()

    def run(self, *arguments: str) -> int:
        return main(["store", arguments[0], "--config", str(self.config), *arguments[1:]])


@pytest.fixture
def place(store_url: str, tmp_path: Path) -> Iterator[Place]:
    place = Place(store_url, tmp_path)
    yield place
    place.client.close()


def test_a_whole_log_is_well(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("check") == 0
    said = capsys.readouterr().out
    assert "fit" in said
    assert "default.auto: 10 events" in said
    assert "WRONG" not in said


def test_digest_and_export_tell_what_the_log_holds(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("digest") == 0
    scope, cursor, digest = capsys.readouterr().out.split()
    assert (scope, len(digest)) == ("default.auto", 64)
    assert place.run("export", "--route", "auto") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["quality"] for event in events] == [n / 10 for n in range(10)]
    assert events[-1]["token"] == cursor


def broken_chain(place: Place) -> None:
    ids = [entry for entry, _ in place.client.xrange(f"{place.base}:log")]
    place.client.xdel(f"{place.base}:log", ids[7])


def damaged_snapshot(place: Place) -> None:
    data = place.client.get(f"{place.base}:snap")
    place.client.set(f"{place.base}:snap", data[:-3] + b"xyz")


def other_digest(place: Place) -> None:
    place.client.hset(f"{place.base}:meta", "digest", "another")


def lost_end(place: Place) -> None:
    ids = [entry for entry, _ in place.client.xrange(f"{place.base}:log")]
    place.client.xdel(f"{place.base}:log", ids[-1])


@pytest.mark.parametrize(
    ("harm", "said", "left"),
    [
        (broken_chain, "the chain breaks", 7),
        (damaged_snapshot, "the snapshot is damaged", 10),
        (other_digest, "was published with it", 10),
        (lost_end, "should end at", 9),
    ],
)
def test_what_is_wrong_is_named_and_repaired(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Place], Any],
    said: str,
    left: int,
) -> None:
    harm(place)
    assert place.run("check") == 1
    assert said in capsys.readouterr().out
    assert place.run("repair", "--keep", str(place.folder)) == 0
    assert f"with {left} events" in capsys.readouterr().out
    assert len(list(place.folder.glob("lost-*.jsonl"))) == (harm is broken_chain)
    assert place.run("check") == 0


def test_an_unknown_route_is_named_beside_those_there_are(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.run("check", "--route", "other") == 2
    assert "known: default.auto" in capsys.readouterr().err


def test_a_store_that_is_away_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(CONFIG % (f"unix://{tmp_path}/nobody", "lr"))
    assert main(["store", "check", "--config", str(config)]) == 2
    assert "ConnectionError" in capsys.readouterr().err
