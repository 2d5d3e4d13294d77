"""ParetoBandit in its process: it is the wheel's own, it is told what happens, and a failure is told back in its words."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest

from bandit.arms import Arm
from bandit.features import context_of
from bandit.prompt import Prompt
from simulations import paretobandit_protocol as protocol
from simulations.minilm import embed
from simulations.paretobandit_rival import (
    COLD,
    FORCED_PULLS,
    ParetoBandit,
    RivalError,
    Settings,
    its_vectors,
    running,
)
from simulations.player import Lesson, Request

ARMS = (
    Arm("llama-3.1-8b-instruct", 0.1, 0.1),
    Arm("mistral-large-2512", 0.5, 1.5),
    Arm("gemini-2.5-pro", 1.25, 10.0),
)
FLASH = Arm("gemini-2.5-flash", 0.3, 2.5)
CONTEXT = context_of(Prompt("What is 12 times 12?"))


@pytest.fixture(scope="module")
def process():
    with running() as child:
        yield child


def vector(seed):
    return np.r_[np.random.default_rng(seed).normal(0, 0.7, 25), 1.0]


def request(n, candidates=ARMS, x=None):
    return Request(n, n, CONTEXT, candidates, vector(n) if x is None else x)


def lesson(n, arm, quality=0.9, cost_usd=5e-4):
    return Lesson(n, n, arm, quality, cost_usd, 100, 100, "recorded")


def test_defaults_are_the_wheels_published_settings(process):
    told = process.ask("defaults")
    warm, cold = told["warm"], told["cold"]
    for settings, published in ((Settings(), warm), (COLD, cold)):
        assert settings.alpha == published["alpha"]
        assert settings.prior_n_effective == published["prior_n_effective"]
        assert settings.forgetting_factor == published["forgetting_factor"]
    assert Settings().warm
    assert not COLD.warm
    assert told["budgets_usd"] == list(protocol.BUDGETS_USD.values())
    assert (told["degraded"][0].rsplit("/", 1)[-1], told["degraded"][1]) == protocol.DEGRADED


def test_its_vectors_are_the_principal_components_of_its_own_file_and_a_bias(tmp_path):
    texts = ["How many legs has a spider?", "Refactor this SQL join, please.", "x"]
    vectors = its_vectors(texts, cache=tmp_path)
    wheel = Path(importlib.util.find_spec("pareto_bandit").submodule_search_locations[0])
    with pytest.warns(match="unpickle|version"):  # it was pickled by another scikit-learn
        pca = joblib.load(wheel / "data" / "artifacts" / "pca_25.joblib")
    unit = embed(texts, cache=tmp_path).astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    components = (unit - pca.mean_) @ pca.components_.T / np.sqrt(pca.explained_variance_)
    np.testing.assert_allclose(vectors[:, :25], components, atol=1e-6)
    np.testing.assert_array_equal(vectors[:, 25], 1.0)


def test_the_wheel_and_what_it_needs_stay_out_of_our_process(process):
    ParetoBandit(process).choose(request(0))
    assert "pareto_bandit" not in sys.modules


def test_it_learns_which_arm_is_good_from_a_cold_start(process):
    player = ParetoBandit(process, COLD, seed=1)
    worth = {"llama-3.1-8b-instruct": 0.2, "mistral-large-2512": 0.5, "gemini-2.5-pro": 0.9}
    chosen = []
    for n in range(400):
        chosen.append(player.choose(request(n)).arm)
        player.learn(lesson(n, chosen[-1], worth[chosen[-1]]))
    assert chosen[-100:].count("gemini-2.5-pro") > 90


def test_choices_come_again_with_the_seed_and_routers_do_not_disturb_each_other(process):
    def choices(*players):
        chosen = []
        for n in range(40):
            for player in players:
                arm = player.choose(request(n)).arm
                player.learn(lesson(n, arm, quality=0.5 + 0.01 * (n % 7)))
                chosen.append(arm)
        return chosen

    alone = choices(ParetoBandit(process, COLD, seed=3))
    together = choices(ParetoBandit(process, COLD, seed=3), ParetoBandit(process, COLD, seed=4))
    assert together[::2] == alone


def test_its_pacer_raises_its_dual_as_costs_overrun_the_budget(process):
    player = ParetoBandit(process, replace(Settings(), budget_usd=1e-4))
    for n in range(30):
        player.learn(lesson(n, player.choose(request(n)).arm, cost_usd=1e-3))
    # EMA of costs in units of the budget, from 1 towards 10, and 0.05 of its excess a step
    dual, ema = 0.0, 1.0
    for _ in range(29):
        ema = 0.95 * ema + 0.05 * 10.0
        dual = min(5.0, max(0.0, dual + 0.05 * (ema - 1.0)))
    assert player.dual == pytest.approx(dual)


def test_a_lesson_without_a_rating_still_tells_the_pacer_its_cost(process):
    rated, unrated = (ParetoBandit(process, Settings(budget_usd=1e-4)) for _ in range(2))
    for player, quality in ((rated, 0.9), (unrated, None)):
        player.learn(lesson(0, player.choose(request(0)).arm, quality, cost_usd=1e-3))
        player.choose(request(1))
    assert unrated.dual == rated.dual > 0


def test_a_newcomer_is_pulled_as_often_as_its_authors_force_and_then_on_its_merits(process):
    player = ParetoBandit(process)
    for n in range(5):
        player.learn(lesson(n, player.choose(request(n)).arm))
    chosen = []
    for n in range(5, 105):
        chosen.append(player.choose(request(n, (*ARMS, FLASH))).arm)
        player.learn(lesson(n, chosen[-1], 0.1 if chosen[-1] == FLASH.name else 0.95))
    assert chosen[:FORCED_PULLS] == [FLASH.name] * FORCED_PULLS
    assert chosen[FORCED_PULLS:].count(FLASH.name) == 0


def test_an_arm_that_is_gone_is_not_chosen_and_a_new_price_counts(process):
    player = ParetoBandit(process, Settings(budget_usd=1e-4))
    for n in range(60):
        player.learn(lesson(n, player.choose(request(n)).arm, cost_usd=2e-3))
    assert player.dual > 0
    without = {player.choose(request(n, ARMS[1:])).arm for n in range(60, 80)}
    assert without <= {arm.name for arm in ARMS[1:]}
    dear = player.choose(request(80, ARMS[1:], vector(80))).arm
    free = replace(ARMS[2], price_usd_per_mtok_in=0.001, price_usd_per_mtok_out=0.001)
    assert dear == "mistral-large-2512"
    assert player.choose(request(81, (ARMS[1], free), vector(80))).arm == "gemini-2.5-pro"


def test_a_request_without_its_vector_is_refused(process):
    with pytest.raises(ValueError, match="give every request its `vector`"):
        ParetoBandit(process).choose(Request(0, 0, CONTEXT, ARMS))


def test_what_it_refuses_is_told_in_its_own_words(process):
    with pytest.raises(RivalError, match=r"ParetoBandit refused 'route': .*dimension 3, expected 26"):
        ParetoBandit(process).choose(request(0, x=np.ones(3)))


def test_a_process_that_ended_is_told_as_such():
    with running() as child:
        child._child.kill()
        child._child.wait()
        with pytest.raises(RivalError, match="process ended at 'defaults'"):
            child.ask("defaults")
