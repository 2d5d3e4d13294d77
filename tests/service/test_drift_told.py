"""What operators read of a model that dropped: its reset, once and loudly; how it is waited for afterwards, in the log only."""

import logging
from pathlib import Path

import numpy as np
import pytest

from bandit.features import DIMENSION, TAG
from bandit.quality import SharedBaseline
from feedback.cuts import DRIFT, RECOVERY
from feedback.events import RATED
from feedback.learning import Identity, Learning
from feedback.memory_store import MemoryStore
from feedback.records import DecisionPrefix, encode_record
from feedback.recovery import HALVING_RATINGS
from feedback.spool import Spool
from feedback.store import Feedback
from service.app import learned_so_far

NOW = 1.79e9
SCOPE = "t.auto"


async def rate(learning: Learning, arm: str, mean: float, numbers: range) -> None:
    """Ratings about `mean` of decisions that expected 0.7."""
    for n in numbers:
        quality = float(np.clip(np.random.default_rng(n).normal(mean, 0.15), 0, 1))
        x = np.eye(1, DIMENSION)[0]
        prefix = DecisionPrefix(arm, x, NOW, 0.5, TAG, b"policy!!", quality_mean=0.7, quality_sd=0.05)
        given = Feedback(f"d-{n}", RATED, "user", quality, b"%08d" % n, encode_record(prefix))
        await learning.routes[SCOPE].log.give_feedback(given)


async def test_halvings_are_told_quietly_and_push_no_reset_off_the_status_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="feedback.learning")
    learning = Learning(
        MemoryStore(),
        await Spool.open(tmp_path, worker="w", clock=lambda: NOW),
        {SCOPE: SharedBaseline()},
        identity=Identity("w", [b"s" * 32], 3600.0),
        clock=lambda: NOW,
    )
    await learning.start()
    await rate(learning, "small", 0.7, range(300))
    await rate(learning, "small", 0.3, range(300, 450))
    await learning.tick()
    await rate(learning, "large", 0.7, range(450, 452 + 2 * HALVING_RATINGS))
    await learning.tick()

    assert [cut.cause for cut in learning.routes[SCOPE].replica.state.cuts] == [DRIFT, RECOVERY, RECOVERY]
    assert [reset["cause"] for reset in learned_so_far(learning, SCOPE)["resets"]] == [DRIFT]
    told = [(record.levelname, record.message.partition("% ")[2]) for record in caplog.records]
    halving = ("INFO", "is kept of what was learned of small by all sources (recovery)")
    reset = "is kept of what was learned of small by all sources (drift, a drop in ratings by user)"
    assert told == [("WARNING", reset), halving, halving]
    await learning.close()
