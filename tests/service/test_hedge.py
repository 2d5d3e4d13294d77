import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.hedge import hedged

SOON, NEVER = 0.001, 3600.0


class Work:
    """Something that ends when it is told to, and remembers how it ended."""

    def __init__(self, name: str) -> None:
        self.name, self.fails, self.ended = name, False, ""
        self.begun, self.go, self.over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self) -> str:
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "failed" if self.fails else "worked"
        self.over.set()
        if self.fails:
            raise ValueError(self.name)
        return self.name


async def race(first: Work, second: Work | None, after_s: float, discarded: list) -> str:
    def discard(result: str) -> None:
        discarded.append(result)

    return await hedged(first(), lambda: second() if second else None, after_s, discard=discard)


async def test_a_quick_first_is_alone():
    first, second, discarded = Work("first"), Work("second"), []
    first.go.set()
    assert await race(first, second, NEVER, discarded) == "first"
    assert (second.ended, discarded) == ("", [])


@pytest.mark.parametrize("winner", ["first", "second"])
async def test_the_first_to_come_is_taken_and_the_other_is_cancelled(winner):
    works, discarded = {"first": Work("first"), "second": Work("second")}, []
    racing = asyncio.create_task(race(works["first"], works["second"], SOON, discarded))
    await works["second"].begun.wait()
    works[winner].go.set()
    assert await racing == winner
    loser = works["second" if winner == "first" else "first"]
    assert (loser.ended, discarded) == ("cancelled", [])


async def test_two_that_come_at_once_leave_one_to_be_discarded():
    first, second, discarded = Work("first"), Work("second"), []
    racing = asyncio.create_task(race(first, second, SOON, discarded))
    await second.begun.wait()
    first.go.set()
    second.go.set()
    assert await racing == "first"
    assert discarded == ["second"]


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
async def test_where_one_fails_the_other_is_waited_for_and_where_both_fail_it_is_told(order):
    for last_works in (True, False):
        works = {"first": Work("first"), "second": Work("second")}
        racing = asyncio.create_task(race(works["first"], works["second"], SOON, []))
        await works["second"].begun.wait()
        works[order[0]].fails = True
        works[order[0]].go.set()
        await works[order[0]].over.wait()
        works[order[1]].fails = not last_works
        works[order[1]].go.set()
        if last_works:
            assert await racing == order[1]
        else:
            with pytest.raises(ValueError):
                await racing


async def test_without_a_second_the_first_is_waited_for():
    first = Work("first")
    racing = asyncio.create_task(race(first, None, SOON, []))
    await first.begun.wait()
    first.go.set()
    assert await racing == "first"


async def test_whoever_is_cancelled_cancels_both():
    first, second = Work("first"), Work("second")
    racing = asyncio.create_task(race(first, second, SOON, []))
    await second.begun.wait()
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert (first.ended, second.ended) == ("cancelled", "cancelled")


@given(st.permutations(["first works", "second works"]))
def test_every_result_is_returned_or_discarded(order):
    async def play() -> None:
        first, second, discarded = Work("first"), Work("second"), []
        racing = asyncio.create_task(race(first, second, SOON, discarded))
        await second.begun.wait()
        for step in order:
            {"first": first, "second": second}[step.split()[0]].go.set()
        taken = await racing
        worked = {work.name for work in (first, second) if work.ended == "worked"}
        assert worked == {taken, *discarded}

    asyncio.run(play())
