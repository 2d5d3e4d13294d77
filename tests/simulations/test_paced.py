"""A policy of ours under a budget: it spends what it may and not more, and what it learns is what the learner learns."""

import numpy as np
import pytest

from bandit.objective import Quality
from bandit.policy import Thompson
from bandit.quality import SharedBaseline
from simulations.learner import Contestant, Learner
from simulations.paced import PacedLearner
from simulations.stream import play
from simulations.world import Facts, SpaceOf, contexts_of, recorded_world, with_features


def played(data, usd, *, n=900, contexts=None, space=None, stream="s"):
    rows = np.random.default_rng(5).permutation(n)
    contexts = contexts_of(data.prompts, Facts()) if contexts is None else contexts
    player = PacedLearner(
        Thompson(Quality()),
        SharedBaseline(),
        Facts() if space is None else space,
        usd_per_request=usd,
        stream=stream,
    )
    return player, list(play(recorded_world(data, rows), contexts, player))


@pytest.mark.parametrize("usd", [3e-4, 6e-4, 2e-3])
def test_it_spends_the_budget_and_not_more(outcomes, usd):
    data = outcomes(900)
    _, steps = played(data, usd)
    assert np.mean([step.cost_usd for step in steps]) <= 1.02 * usd
    assert np.mean([step.cost_usd for step in steps[300:]]) >= 0.7 * usd  # 0.70 to 1.03 over twelve streams


def test_a_larger_budget_buys_quality(outcomes):
    data = outcomes(900)
    poor, rich = (np.mean([s.quality for s in played(data, usd)[1][300:]]) for usd in (2.5e-4, 2e-3))
    assert rich > poor + 0.03


def test_a_budget_that_never_binds_leaves_the_choice_to_quality(outcomes):
    data = outcomes(300)
    paced, steps = played(data, 1.0, n=300)
    world = recorded_world(data, np.random.default_rng(5).permutation(300))
    learner = Learner(Contestant("free", Thompson(Quality()), SharedBaseline()), Facts(), stream="s")
    free = list(play(world, contexts_of(data.prompts, Facts()), learner))
    assert [step.choice.arm for step in steps] == [step.choice.arm for step in free]
    assert paced.pacer.dual == 0.0


def test_arms_beyond_the_allowance_have_no_probability_and_the_others_sum_to_one(outcomes):
    _, steps = played(outcomes(400), 1e-4, n=400)  # below the middle arm's cost
    for step in steps[50:]:
        probabilities = step.choice.decision.probabilities
        assert probabilities.sum() == pytest.approx(1.0)
        assert (
            step.choice.propensity
            == probabilities[step.choice.decision.candidates.index(step.choice.decision.arm)]
        )
    assert any((step.choice.decision.probabilities == 0).any() for step in steps[50:])


def test_vectors_of_another_space_are_learned_from(outcomes):
    data = outcomes(600)
    kinds = np.array([[1.0, float("def f" in prompt.text)] for prompt in data.prompts])
    contexts = with_features(contexts_of(data.prompts, Facts()), kinds)
    _, steps = played(data, 1.5e-3, n=600, contexts=contexts, space=SpaceOf(b"one kind", 2))
    hard = [step.choice.arm for step in steps[300:] if kinds[step.row, 1] == 1.0]
    assert hard.count("small") < 0.05 * len(
        hard
    )  # the small one fails at these; by chance it would have a third
