"""`bench path`: clocks that add up, on the real application."""

import asyncio
from contextlib import suppress

from simulations import bench_path
from simulations.bench_path import CHUNKS, STEPS, Clocks, clocked, table


def test_what_is_spent_within_a_step_is_not_counted_twice(monkeypatch):
    now_ns = iter(range(0, 10_000, 100))
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(now_ns))
    clocks = Clocks()
    outer = clocks.begin()  # at 0
    inner = clocks.begin()  # at 100
    clocks.end("inner", inner)  # at 200
    clocks.end("outer", outer)  # at 300
    assert clocks.spent == {"inner": 100, "outer": 200}


def test_every_step_is_passed_and_put_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_path, "WARM", 30)
    monkeypatch.setattr(bench_path, "REQUESTS", 20)
    monkeypatch.setattr(bench_path, "STREAMS", 5)
    before = [owner.__dict__[name] for _, owner, name in STEPS]
    whole, streamed = asyncio.run(bench_path._measured(tmp_path))
    assert [owner.__dict__[name] for _, owner, name in STEPS] == before
    named = {step for step, _, _ in STEPS}
    assert {step for seen in (*whole, *streamed) for step in seen} == named | {""}
    assert all(sum(us for step, us in seen.items() if step) < seen[""] for seen in (*whole, *streamed))


def test_the_table_has_medians_and_a_stream_by_its_events():
    whole = [{"record": 1000, "": 9000}, {"record": 3000, "": 9000}, {"record": 2000, "": 9000}]
    streamed = [{"events spliced": 4000 * CHUNKS, "": 9000 + 6000 * CHUNKS}]
    told = table(whole, streamed)
    assert "| record | 2.0 | " in told
    assert "| the rest: tasks, generators, tables | 7.0 | - |" in told
    assert "| an event of a stream: events spliced | 4.0 | - |" in told
    assert "beyond the request itself** | **6.0** |" in told


def test_the_clocks_are_taken_away_after_a_failure():
    before = [owner.__dict__[name] for _, owner, name in STEPS]
    with suppress(ZeroDivisionError), clocked(Clocks()):
        _ = 1 / 0
    assert [owner.__dict__[name] for _, owner, name in STEPS] == before
