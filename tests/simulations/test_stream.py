"""The one loop: what a player sees, what it is told and when, and that a wrong choice is refused."""

from dataclasses import replace

import numpy as np
import pytest

from simulations.player import Choice
from simulations.stream import USAGE, play
from simulations.world import RECORDED, Channel, Facts, Phase, contexts_of, recorded_world


class Diary:
    """Chooses as it is told and writes down everything that happens to it."""

    def __init__(self, choose=lambda request: request.candidates[request.n % len(request.candidates)].name):
        self.pick, self.requests, self.told = choose, [], []

    def choose(self, request):
        self.requests.append(request)
        return Choice(self.pick(request))

    def learn(self, lesson):
        self.told.append((len(self.requests) - 1, lesson))  # (the newest request by then, lesson)


def played(world, dataset, player, **options):
    return list(play(world, contexts_of(dataset.prompts, Facts()), player, **options))


def test_a_player_is_told_at_once_what_its_choice_was_recorded_to_do(outcomes):
    data, diary = outcomes(30), Diary()
    rows = np.random.default_rng(1).permutation(30)
    steps = played(recorded_world(data, rows), data, diary)
    assert [step.row for step in steps] == rows.tolist()
    assert [when for when, _ in diary.told] == list(range(30))
    for step, (_, lesson) in zip(steps, diary.told, strict=True):
        k = data.column(step.choice.arm)
        assert (lesson.n, lesson.row, lesson.arm) == (step.n, step.row, step.choice.arm)
        assert lesson.quality == step.quality == data.quality[step.row, k]
        assert lesson.cost_usd == step.cost_usd == data.cost_usd[step.row, k]
        assert (lesson.tokens_in, lesson.tokens_out) == (60, data.tokens_out[step.row, k])
        assert lesson.source == RECORDED


def test_a_late_rating_comes_after_so_many_requests_and_the_cost_at_once(outcomes):
    data, diary = outcomes(20), Diary()
    world = recorded_world(data, range(20))
    late = replace(world.channels[0], delay=np.full(20, 7))
    played(replace(world, channels=(late,)), data, diary)
    usage = [(when, lesson) for when, lesson in diary.told if lesson.quality is None]
    rated = [(when, lesson) for when, lesson in diary.told if lesson.quality is not None]
    assert [(when, lesson.n) for when, lesson in usage] == [(n, n) for n in range(20)]
    assert {lesson.source for _, lesson in usage} == {USAGE}
    assert [(when, lesson.n) for when, lesson in rated] == [
        (n + 7, n) for n in range(13)
    ]  # the rest too late


def test_missing_ratings_never_come_and_every_source_rates_for_itself(outcomes):
    data, diary = outcomes(40), Diary()
    world = recorded_world(data, range(40))
    silent = np.where(np.arange(40)[:, None] % 2 == 0, np.nan, world.quality)
    judge = Channel("judge", np.clip(world.quality + 0.1, 0, 1), np.zeros(40, dtype=np.int64))
    channels = (Channel("user", silent, np.zeros(40, dtype=np.int64)), judge)
    played(replace(world, channels=channels), data, diary)
    by_source = {name: [m.n for _, m in diary.told if m.source == name] for name in ("user", "judge", USAGE)}
    assert by_source == {"user": list(range(1, 40, 2)), "judge": list(range(40)), USAGE: []}


def test_candidates_and_prices_are_those_of_the_phase(outcomes):
    data, diary = outcomes(10), Diary()
    small, middle, large = data.arms
    cheap = replace(large, price_usd_per_mtok_out=1.0)
    phases = (Phase("before", 0, 4, (small, middle)), Phase("after", 4, 10, (small, cheap)))
    played(replace(recorded_world(data, range(10)), phases=phases), data, diary)
    assert [request.candidates for request in diary.requests] == [(small, middle)] * 4 + [(small, cheap)] * 6


def test_foreign_vectors_come_by_row(outcomes):
    data, diary = outcomes(10), Diary()
    vectors = np.arange(20.0).reshape(10, 2)
    played(recorded_world(data, [3, 1, 2]), data, diary, vectors=vectors)
    assert [request.vector.tolist() for request in diary.requests] == [[6, 7], [2, 3], [4, 5]]


def test_an_arm_that_is_not_on_offer_cannot_be_chosen(outcomes):
    data = outcomes(10)
    with pytest.raises(ValueError, match="request 0: 'nobody' was chosen and is not on offer"):
        played(recorded_world(data, range(10)), data, Diary(lambda _: "nobody"))
