"""ParetoBandit's experiments: the published streams, request by request, as their scripts shuffle them."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulations import paretobandit_protocol as protocol
from simulations.datasets import DatasetError, load_wheel, take

WHEEL = load_wheel()
VAL, TEST = take(WHEEL, np.arange(1785)), take(WHEEL, np.arange(1785, 3609))
MISTRAL, GEMINI = WHEEL.column("mistral-large-2512"), WHEEL.column("gemini-2.5-pro")


def test_the_wheel_splits_where_its_files_do():
    assert {prompt.prompt_id[:3] for prompt in VAL.prompts} == {"val"}
    assert {prompt.prompt_id[:4] for prompt in TEST.prompts} == {"test"}
    assert (len(VAL.prompts), len(TEST.prompts)) == (protocol.VAL, protocol.TEST)


def test_the_seven_budgets_are_the_published_ones():
    budgets = protocol.stationary(VAL, TEST).budgets_usd
    assert list(budgets) == ["2.9e-05", "8.3e-05", "2.3e-04", "6.6e-04", "1.9e-03", "5.3e-03", "1.5e-02"]
    logs = np.log(list(budgets.values()))
    np.testing.assert_allclose(np.diff(logs), np.diff(logs)[0])


def test_a_stationary_stream_is_the_seeds_two_permutations_one_after_the_other():
    world = protocol.stationary(VAL, TEST).world(3007)
    rng = np.random.default_rng(3007)
    np.testing.assert_array_equal(world.rows[:1785], rng.permutation(1785))
    order = rng.permutation(1824)
    np.testing.assert_array_equal(world.rows[1785:], 1785 + order)
    np.testing.assert_array_equal(world.quality[1785:], TEST.quality[order])
    np.testing.assert_array_equal(world.cost_usd[:1785], VAL.cost_usd[world.rows[:1785]])
    assert [(p.name, p.start, p.stop) for p in world.phases] == [("learning", 0, 1785), ("test", 1785, 3609)]


def test_unconstrained_is_the_test_part_from_the_first_request():
    experiment = protocol.unconstrained(TEST)
    world = experiment.world(9003)
    order = np.random.default_rng(9003).permutation(1824)
    np.testing.assert_array_equal(world.rows, order)
    np.testing.assert_array_equal(world.quality, TEST.quality[order])
    assert experiment.budgets_usd == {"none": None}


@pytest.mark.parametrize("make", [protocol.degradation, protocol.price_drop])
def test_three_phases_ask_608_prompts_then_608_others_then_the_first_again(make):
    experiment = make(VAL, TEST)
    world = experiment.world(6001)
    assert [(p.name, p.stop - p.start) for p in world.phases] == [
        ("learning", 1785),
        ("P1", 608),
        ("P2", 608),
        ("P3", 608),
    ]
    p1, p2, p3 = (world.rows[p.start : p.stop] for p in world.phases[1:])
    assert set(p1) == set(p3)
    assert not set(p1) & set(p2)
    assert p1.tolist() != p3.tolist()
    partition = np.random.default_rng(42).permutation(1824)
    texts = [TEST.prompts[i].text for i in partition[:1216]]
    assert [prompt.text for prompt in experiment.prompts[1785:]] == texts
    rng = np.random.default_rng(6001)
    rng.permutation(1785)
    np.testing.assert_array_equal(p1 - 1785, rng.permutation(608))
    np.testing.assert_array_equal(p2 - 1785 - 608, rng.permutation(608))
    np.testing.assert_array_equal(p3 - 1785, rng.permutation(608))


def test_in_the_degraded_phase_mistral_answers_all_alike_and_nothing_else_changes():
    world = protocol.degradation(VAL, TEST).world(6000)
    p1, p2, p3 = (slice(p.start, p.stop) for p in world.phases[1:])
    assert set(world.quality[p2, MISTRAL]) == {0.75}
    assert world.quality[p1, MISTRAL].mean() == pytest.approx(world.quality[p3, MISTRAL].mean())
    assert world.quality[p1, MISTRAL].mean() > 0.9
    partition = np.random.default_rng(42).permutation(1824)
    truth = take(TEST, partition[608:1216])
    rows = world.rows[p2] - 1785 - 608
    np.testing.assert_array_equal(world.cost_usd[p2], truth.cost_usd[rows])
    others = [k for k in range(3) if k != MISTRAL]
    np.testing.assert_array_equal(world.quality[p2][:, others], truth.quality[rows][:, others])


def test_in_the_cheap_phase_geminis_price_and_recorded_costs_fall_and_come_back():
    world = protocol.price_drop(VAL, TEST).world(8000)
    prices = [
        (phase.candidates[GEMINI].price_usd_per_mtok_in, phase.candidates[GEMINI].price_usd_per_mtok_out)
        for phase in world.phases
    ]
    assert prices == [(1.25, 10.0), (1.25, 10.0), (0.1, 0.1), (1.25, 10.0)]
    partition = np.random.default_rng(42).permutation(1824)
    p2 = slice(world.phases[2].start, world.phases[2].stop)
    recorded = take(TEST, partition[608:1216]).cost_usd[world.rows[p2] - 1785 - 608]
    np.testing.assert_allclose(world.cost_usd[p2, GEMINI], recorded[:, GEMINI] * 0.2 / 11.25)
    np.testing.assert_array_equal(world.cost_usd[p2, MISTRAL], recorded[:, MISTRAL])


MODELS = {
    "gemini-2.5-flash": (0.3, 2.5),
    "llama-3.1-8b-instruct": (0.1, 0.1),
    "mistral-large-2512": (0.5, 1.5),
    "gemini-2.5-pro": (1.25, 10.0),
}


def folder(path, models=MODELS, splits=("test", "val", "test")):
    prompts = [
        {"prompt_id": f"p{i}", "prompt": f"question {i}", "origin_split": split}
        for i, split in enumerate(splits)
    ]
    outcomes = [
        {"prompt_id": p["prompt_id"], "model": m, "quality": 0.1 * i + 0.2, "cost_usd": 1e-4 * (i + 1)}
        for p in prompts
        for i, m in enumerate(models)
    ]
    pq.write_table(pa.Table.from_pylist(prompts), path / "prompts.parquet")
    pq.write_table(pa.Table.from_pylist(outcomes), path / "outcomes.parquet")
    with (path / "prices.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "in_usd_per_m", "out_usd_per_m"])
        writer.writerows([m, *price] for m, price in models.items())
    return path


def test_the_newcomer_comes_from_the_test_prompts_of_the_folder(tmp_path):
    data = protocol.load_newcomer(folder(tmp_path))
    assert [prompt.prompt_id for prompt in data.prompts] == ["p0", "p2"]


@pytest.mark.parametrize(
    ("case", "quality", "cost"), [("good", 0.2, 1e-4), ("bad", 0.1, 1e-4), ("dear", 0.2, 1e-3)]
)
def test_the_newcomer_is_on_offer_from_its_phase_on_as_good_or_bad_or_dear(tmp_path, case, quality, cost):
    experiment = protocol.onboarding(VAL, protocol.load_newcomer(folder(tmp_path)), case)
    world = experiment.world(9000)
    flash = world.arms.index("gemini-2.5-flash")
    learning, later = world.phases
    assert not world.offered()[learning.start : learning.stop, flash].any()
    assert world.offered()[later.start : later.stop].all()
    np.testing.assert_allclose(world.quality[later.start :, flash], quality)
    np.testing.assert_allclose(world.cost_usd[later.start :, flash], cost)
    np.testing.assert_allclose(world.quality[later.start :, world.arms.index("mistral-large-2512")], 0.4)
    (arm,) = [arm for arm in later.candidates if arm.name == "gemini-2.5-flash"]
    assert arm.price_usd_per_mtok_out == pytest.approx(2.5 * cost / 1e-4)
    np.testing.assert_array_equal(world.quality[:1785, flash], 0.0)
    for k, known in enumerate(VAL.arms):
        column = world.quality[:1785, world.arms.index(known.name)]
        np.testing.assert_array_equal(column, VAL.quality[world.rows[:1785], k])


def test_a_folder_without_the_newcomer_is_refused_by_name(tmp_path):
    models = {m: price for m, price in MODELS.items() if m != "gemini-2.5-flash"}
    with pytest.raises(
        DatasetError, match=r"has no outcomes of gemini-2\.5-flash; its models are gemini-2\.5-pro"
    ):
        protocol.load_newcomer(folder(tmp_path, models))


def test_a_folder_that_does_not_tell_val_from_test_is_refused(tmp_path):
    path = folder(tmp_path) / "prompts.parquet"
    pq.write_table(pq.read_table(path).drop_columns("origin_split"), path)
    with pytest.raises(DatasetError, match="origin_split missing"):
        protocol.load_newcomer(tmp_path)


def test_onboarding_needs_its_folder_and_the_rest_does_not(tmp_path):
    names = [experiment.name for experiment in protocol.experiments(None)]
    assert names == ["stationary", "unconstrained", "degradation", "price-drop"]
    every = [experiment.name for experiment in protocol.experiments(folder(tmp_path))]
    assert every == [*names, "onboarding-good", "onboarding-bad", "onboarding-dear"]
