"""The rivals do what their papers say: closed forms, packages as independent references, and problems they must solve."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from mabwiser.mab import MAB, LearningPolicy

from simulations.baselines import EXPECTED_REWARD, UCB1, EpsilonGreedy, Rival
from simulations.contestants import CONTESTANTS, Pool
from simulations.linear import DisjointRidges, LinTS, LinUCB
from simulations.metrics import Goal, best_fixed
from simulations.packages import PackageMissingError, require
from simulations.player import Lesson, Request
from simulations.stale import ParetoBanditPolicy
from simulations.stream import play
from simulations.world import Facts, Phase, contexts_of, recorded_world

QUALITY, BALANCED = Goal("quality", 0.01, 0.02), Goal("balanced", 0.01, 0.02)
D = 4


def some_rewards(n=60, seed=3):
    rng = np.random.default_rng(seed)
    x = np.c_[np.ones(n), rng.normal(size=(n, D - 1))]
    return [(str(k), xi, float(r)) for k, xi, r in zip(rng.integers(0, 3, n), x, rng.random(n), strict=True)]


def test_ridges_equal_their_closed_form():
    ridges, seen = DisjointRidges(D), some_rewards()
    for arm, x, reward in seen:
        ridges.update(arm, x, reward)
    x = np.array([1.0, 0.3, -0.2, 2.0])
    mean, width = ridges.mean_and_width(x, ["0", "1", "2"])
    for k in range(3):
        X = np.array([x for arm, x, _ in seen if arm == str(k)])
        r = np.array([reward - EXPECTED_REWARD for arm, _, reward in seen if arm == str(k)])
        A = np.eye(D) + X.T @ X
        assert mean[k] == pytest.approx(x @ np.linalg.solve(A, X.T @ r), abs=1e-10)
        assert width[k] == pytest.approx(math.sqrt(x @ np.linalg.solve(A, x)), abs=1e-10)


def test_discounted_ridges_weigh_each_reward_by_its_age():
    ridges, seen, discount = DisjointRidges(D, 0.9), some_rewards(25), 0.9
    for arm, x, reward in seen:
        ridges.mean_and_width(x, ["0", "1", "2"])
        ridges.update(arm, x, reward)
    x = np.array([1.0, 0.3, -0.2, 2.0])
    mean, width = ridges.mean_and_width(x, ["0", "1", "2"])
    for k in range(3):
        A, b = np.eye(D), np.zeros(D)
        for age, (arm, xi, reward) in enumerate(reversed(seen), start=1):
            if arm == str(k):
                A += discount**age * np.outer(xi, xi)
                b += discount**age * (reward - EXPECTED_REWARD) * xi
        assert mean[k] == pytest.approx(x @ np.linalg.solve(A, b), abs=1e-10)
        assert width[k] == pytest.approx(math.sqrt(x @ np.linalg.solve(A, x)), abs=1e-10)


def test_linucb_scores_are_those_of_mabwiser():
    ours, theirs = LinUCB(0.7, D), MAB(["0", "1", "2"], LearningPolicy.LinUCB(alpha=0.7, l2_lambda=1.0))
    seen = some_rewards()
    for arm, x, reward in seen:
        ours.update(arm, x, reward)
    arms, X, rewards = zip(*seen, strict=True)
    theirs.fit(list(arms), [reward - EXPECTED_REWARD for reward in rewards], np.array(X))
    x = np.array([1.0, -0.5, 0.1, 0.4])
    expected = theirs.predict_expectations(x[None])
    np.testing.assert_allclose(ours.scores(x, ["0", "1", "2"]), [expected[a] for a in "012"], atol=1e-10)


def test_lints_draws_have_the_posterior_s_mean_and_spread():
    lints, ridges = LinTS(0.5, D, np.random.default_rng(0)), DisjointRidges(D)
    for arm, x, reward in some_rewards():
        lints.update(arm, x, reward)
        ridges.update(arm, x, reward)
    x = np.array([1.0, -0.5, 0.1, 0.4])
    draws = np.array([lints.scores(x, ["0", "1", "2"]) for _ in range(20_000)])
    mean, width = ridges.mean_and_width(x, ["0", "1", "2"])
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.01)
    np.testing.assert_allclose(draws.std(axis=0), 0.5 * width, rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(3), atol=0.03)


def test_paretobandit_s_policy_scores_as_its_wheel_does():
    """Its own code in a process of its own: the same rewards, some late, arms idle long enough to lose their ridge."""
    rng = np.random.default_rng(4)
    x = np.c_[np.ones(1500), rng.normal(size=(1500, D - 1))]
    rewards, late = rng.random((1500, 3)), rng.random(1500) < 0.2
    ours, names = ParetoBanditPolicy(0.3, D), ["0", "1", "2"]
    wheel = subprocess.run(
        [sys.executable, "-c", f"EXPECTED = {EXPECTED_REWARD}\n{WHEEL}"],
        input=json.dumps([x.tolist(), (rewards - EXPECTED_REWARD).tolist(), late.tolist()]),
        capture_output=True,
        text=True,
        check=True,
    )
    for k, name in enumerate(names):  # so that there are no ties, which its wheel breaks by chance
        ours.update(name, x[-1 - k], 0.1 * k)
    waiting, scores, chosen = [], [], []
    for n in range(1500):
        offered = names[:2] if 300 <= n < 1300 else names  # the third rests for a thousand requests
        found = ours.scores(x[n], offered)
        scores.append(float(found.max()))
        chosen.append(offered[int(np.argmax(found))])
        waiting.append((chosen[-1], n))
        if not late[n]:
            for arm, of in waiting:
                ours.update(arm, x[of], rewards[of, int(arm)])
            waiting = []
    told = json.loads(wheel.stdout.splitlines()[-1])
    assert chosen == told["chosen"]
    assert len(set(chosen[1300:])) > 1
    np.testing.assert_allclose(scores, told["scores"], rtol=1e-6)


WHEEL = """
import json, sys
import numpy as np
from pareto_bandit.policy import DisjointLinUCBPolicy

x, rewards, late = (np.array(part) for part in json.load(sys.stdin))
names = ["0", "1", "2"]
policy = DisjointLinUCBPolicy(names, dim=x.shape[1], alpha=0.3, forgetting_factor=0.997)
for k, name in enumerate(names):
    policy.update(name, x[-1 - k], 0.1 * k - EXPECTED, advance_time=False)
waiting, scores, chosen = [], [], []
for n in range(len(x)):
    offered = names[:2] if 300 <= n < 1300 else names
    arm, score = policy.select_arm(x[n], offered)
    policy.mark_selected(arm)
    scores.append(score), chosen.append(arm), waiting.append((arm, n))
    if not late[n]:
        for arm, of in waiting:
            policy.update(arm, x[of], rewards[of, int(arm)], advance_time=False)
        waiting = []
print(json.dumps({"scores": scores, "chosen": chosen}))
"""


def test_ucb1_by_hand():
    """Means 0.5 and 0.8 after 2 and 1 rewards: 0.5 + sqrt(2 ln 3 / 2), 0.8 + sqrt(2 ln 3 / 1); untried ones first."""
    ucb, x = UCB1(1.0), np.ones(1)
    for arm, reward in (("a", 0.4), ("a", 0.6), ("b", 0.8)):
        ucb.update(arm, x, reward)
    log_t = 2 * math.log(3)
    expected = [0.5 + math.sqrt(log_t / 2), 0.8 + math.sqrt(log_t), math.inf]
    np.testing.assert_allclose(ucb.scores(x, ["a", "b", "c"]), expected)


def test_epsilon_greedy_explores_as_often_as_it_says():
    greedy = EpsilonGreedy(0.3, np.random.default_rng(0))
    for arm, reward in (("a", 0.9), ("b", 0.1)):
        greedy.update(arm, np.ones(1), reward)
    picks = [int(np.argmax(greedy.scores(np.ones(1), ["a", "b"]))) for _ in range(10_000)]
    assert np.mean(picks) == pytest.approx(0.15, abs=0.015)


def test_a_rival_s_reward_is_the_utility_of_what_it_was_told(outcomes):
    class Notes:
        def __init__(self):
            self.updates = []

        def scores(self, x, arms):
            return np.arange(len(arms))

        def update(self, arm, x, reward):
            self.updates.append((arm, reward))

    data, notes = outcomes(5), Notes()
    rival = Rival(notes, BALANCED)
    context = contexts_of(data.prompts, Facts())[0]
    assert rival.choose(Request(0, 0, context, data.arms)).arm == "large"
    rival.learn(Lesson(0, 0, "large", None, 0.002, 1, 1, "usage"))
    rival.learn(Lesson(0, 0, "large", 0.9, 0.002, 1, 1, "user"))
    assert notes.updates == [("large", pytest.approx(0.9 - 0.002 / 0.01))]
    with pytest.raises(ValueError, match="rivals play quality or balanced"):
        Rival(notes, Goal("cost", 0.01, 0.02))


@pytest.mark.parametrize("name", [name for name in CONTESTANTS if name != "random"])
def test_everybody_finds_an_arm_that_is_far_better(name, outcomes):
    """All prompts hard: the large model is worth 0.2 more than the middle one and 0.65 more than the small one."""
    data = outcomes(400, hard_share=1.0)
    entry, pool = CONTESTANTS[name], Pool(data.name, "0:0")
    if entry.vectors is not None:
        pytest.skip("plays on foreign vectors; see its own tests")
    player = entry.build(QUALITY, pool, entry.default)
    world = recorded_world(data, np.random.default_rng(0).permutation(400))
    steps = list(play(world, contexts_of(data.prompts, pool.features), player))
    late = [step.choice.arm for step in steps[-100:]]
    assert late.count(data.arms[best_fixed(data, QUALITY)].name) >= 75


@pytest.mark.parametrize(
    "name", [name for name in CONTESTANTS if name != "router"]
)  # it is a scenario of its own
def test_a_newcomer_can_be_chosen_and_one_that_left_cannot(name, outcomes):
    data = outcomes(90, hard_share=1.0)
    small, middle, large = data.arms
    entry = CONTESTANTS[name]
    if entry.vectors is not None:
        pytest.skip("plays on foreign vectors; see its own tests")
    phases = (Phase("before", 0, 30, (small, middle)), Phase("after", 30, 90, (middle, large)))
    world = replace(recorded_world(data, range(90)), phases=phases)
    player = entry.build(QUALITY, Pool(data.name, "0:0"), entry.grid[-1])
    steps = list(play(world, contexts_of(data.prompts, Facts()), player))  # refuses what is not on offer
    assert "large" in {step.choice.arm for step in steps[30:]}


def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it():
    with pytest.raises(PackageMissingError, match=r"no_such_package is not installed: .*fairlead\[bench\]"):
        require("no_such_package")
