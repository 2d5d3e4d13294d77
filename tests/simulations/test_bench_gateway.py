"""The gateway's bench: its load against its own upstream, the real gateway behind it, and its tables from known samples."""

from pathlib import Path

import pytest
import uvloop

from simulations import bench_gateway_tables as tables
from simulations.bench_gateway import Plan, Seen
from simulations.bench_load import Sample, Shape, load
from simulations.bench_stacks import BARE, ROUTER, Stack, gateway, running
from simulations.bench_upstream import CHUNKS


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    with running(tmp_path_factory.mktemp("bench"), rivals=()) as field:
        yield field


@pytest.mark.parametrize("stream", [False, True])
def test_every_stack_answers_the_load_without_a_failure(where, stream):
    for stack in (where.direct, *where.stacks):
        sample = uvloop.run(load(stack.target, Shape(2, 0.5, stream), stack.cpu_s))
        assert sample.failed == 0, stack.name
        assert len(sample.latency_us) > 0, stack.name
        assert not stream or sample.chunks >= CHUNKS, stack.name
        assert stack.rss_mib() > 1


def test_answers_are_rated_at_the_real_gateway(where):
    router = where.named(ROUTER)
    sample = uvloop.run(load(tables.rated(router.target, 1), Shape(2, 0.5)))
    assert sample.rated > 0
    assert sample.failed == 0


def test_a_rate_is_kept_and_waiting_counts(where):
    bare = where.named(BARE)
    sample = uvloop.run(load(bare.target, Shape(4, 1.0, rate=50.0)))
    assert sample.per_s == pytest.approx(50, abs=5)


def test_a_server_that_refuses_is_seen_as_failed(where):
    router = where.named(ROUTER)
    keyless = tables.replace(router.target, key="wrong")
    sample = uvloop.run(load(keyless, Shape(1, 0.3)))
    assert sample.failed > 0
    assert sample.latency_us == []


def test_bars_are_ratios_within_rounds_and_say_whether_they_are_met():
    seen, shape = Seen(Plan(rounds=3, seconds=1.0)), Shape(16, 1.0)
    for ours, bare in ((60, 100), (50, 125), (70, 100)):
        for name, answers in ((ROUTER, ours), (BARE, bare)):
            sample = Sample(seconds=1.0, used=0.5, latency_us=[100.0] * answers, first_us=[100.0] * answers)
            seen.add(Stack(name, None, ()), shape, sample)
    seen.worker_mib = 121.0
    seen.load_share.append(0.25)
    page = tables.page(seen, [shape])
    assert "| req/s at 16 ÷ bare pass-through | >= 0.5 | 0.60 [0.40 .. 0.70] | 0.60 | yes |" in page
    assert "took 25% of one of the cores" in page
    assert "| resident MiB of a worker | <= 120 | 121 |  | **no** |" in page


def test_a_gateway_begins_with_everything_on(tmp_path: Path):
    with gateway(tmp_path / "g", "http://127.0.0.1:9", arms=2) as stack:
        assert len(stack.pids) >= 2  # its store is a process of its own
        assert stack.target.key
        assert (tmp_path / "g" / "state").is_dir()
