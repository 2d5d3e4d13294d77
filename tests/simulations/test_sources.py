"""Pools that tell the same outcomes are one source, through any chain of overlaps; the same prompts alone are not enough."""

from dataclasses import replace

import numpy as np

from bandit.arms import Arm
from simulations.datasets import take
from simulations.sources import clusters


def test_a_part_and_the_whole_are_one_source_and_others_are_alone(outcomes):
    whole, other = outcomes(100), outcomes(100, seed=1, name="other")
    part = replace(take(whole, np.arange(30)), name="part")
    assert clusters([whole, other, part]) == [0, 1, 0]


def test_a_union_joins_its_parts(outcomes):
    whole = outcomes(100)
    first, second = take(whole, np.arange(50)), take(whole, np.arange(50, 100))
    assert clusters([first, second]) == [0, 1]
    assert clusters([first, second, whole]) == [0, 0, 0]


def test_other_models_on_the_same_prompts_are_another_source(outcomes):
    whole = outcomes(100)
    others = tuple(Arm(f"other-{arm.name}", 1.0, 1.0) for arm in whole.arms)
    assert clusters([whole, replace(whole, arms=others)]) == [0, 1]
    again = replace(whole, quality=np.random.default_rng(5).random(whole.quality.shape))
    assert clusters([whole, again]) == [0, 1]


def test_a_few_shared_prompts_do_not_make_one_source(outcomes):
    whole, other = outcomes(100), outcomes(95, seed=1, name="other")
    few = take(whole, np.arange(5))
    mixed = replace(
        other,
        prompts=other.prompts + few.prompts,
        **{
            name: np.concatenate([getattr(other, name), getattr(few, name)])
            for name in ("quality", "cost_usd", "tokens_in", "tokens_out")
        },
    )
    assert clusters([whole, mixed]) == [0, 1]
