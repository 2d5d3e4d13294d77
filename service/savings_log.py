"""Reading decision logs back: all files of all folders joined by decision id, as the traffic of each route.

A decision, its calls and its ratings may stand in files of different gateways. What cannot be read is counted, never guessed:
the last line of a process that was killed is torn.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from bandit.savings import Traffic
from bandit.types import Matrix
from service.day_files import day_of
from service.outcomes import UNANSWERED

ROUNDED_USD: Final = 1e-9  # a bill is a difference: one of nothing may come out below 0, by less than this


class LogError(ValueError):
    """There is no log to read; the message says what was looked for."""


@dataclass(frozen=True, slots=True)
class _Decided:
    """A line of the kind `decision`, without what nobody adds up."""

    decided_at: float
    scope: str
    route: str
    attempt: int
    chosen: str
    candidates: tuple[str, ...]
    probabilities: "array[float]"
    quality_mean: "array[float]"
    expected_usd: "array[float]"
    strategy: "array[float]"

    @classmethod
    def of(cls, line: Mapping[str, Any], names: dict[tuple[str, ...], tuple[str, ...]]) -> "_Decided":
        """names: lists of candidates, each kept once. ValueError, KeyError or TypeError for a line that is none of ours."""
        candidates = tuple(line["candidates"])
        probabilities = _numbers(line["probabilities"])
        strategy = _numbers(line["strategy"]) if "strategy" in line else probabilities
        columns = [probabilities, _numbers(line["quality_mean"]), _numbers(line["cost_usd"]), strategy]
        if any(len(column) != len(candidates) for column in columns):
            raise ValueError("a decision has as many numbers as candidates")
        for chances in (probabilities, strategy):
            if min(chances) < 0 or abs(sum(chances) - 1.0) > 1e-6:
                raise ValueError("probabilities are at least 0, and their sum is 1")
        if not probabilities[candidates.index(line["model"])] > 0:
            raise ValueError("what was chosen had a probability above 0")
        return cls(
            float(line["decided_at"]),
            str(line["scope"]),
            str(line["route"]),
            int(line["attempt"]),
            str(line["model"]),
            names.setdefault(candidates, candidates),
            *columns,
        )


@dataclass(frozen=True, slots=True)
class Read:
    """One route's traffic, and what was left out of it: further attempts, after failures or beside slow answers, and what they
    cost; requests for a model by its name. sources: who rated how many decisions.
    """

    traffic: Traffic
    first_at: float
    last_at: float
    attempts: int
    attempts_usd: float
    by_name: int
    sources: Mapping[str, int]


@dataclass(slots=True)
class DecisionLogs:
    """files, lines: how many were read; torn: lines that are none, or none of ours."""

    files: int = 0
    lines: int = 0
    torn: int = 0
    _decided: dict[str, _Decided] = field(default_factory=dict)
    _calls: dict[str, set[tuple[Any, ...]]] = field(default_factory=dict)
    _ratings: dict[str, dict[str, tuple[float, float | None]]] = field(default_factory=dict)
    _charges: dict[str, dict[str, tuple[float, float | None]]] = field(default_factory=dict)
    _names: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, folders: Sequence[Path], *, since: date | None = None) -> "DecisionLogs":
        """since: the first UTC day whose decisions count. LogError where there is nothing to read."""
        found = cls()
        for path in _files(folders):
            written = day_of(path)
            if since is None or written is None or written >= since:
                found._read(path)
        if since is not None:
            first = datetime(since.year, since.month, since.day, tzinfo=UTC).timestamp()
            found._decided = {key: d for key, d in found._decided.items() if d.decided_at >= first}
        if not found._decided:
            where = ", ".join(map(str, folders))
            raise LogError(f"{where}: no decision{f' since {since}' if since else ''} in {found.files} files")
        return found

    def scopes(self) -> set[str]:
        return {decided.scope for decided in self._decided.values()}

    def of(self, scope: str) -> Read | None:
        """The traffic of "tenant.route"; None where nothing was decided for it."""
        own = sorted(
            ((key, d) for key, d in self._decided.items() if d.scope == scope),
            key=lambda pair: (pair[1].decided_at, pair[0]),
        )
        routed = [(key, d) for key, d in own if d.route == scope.partition(".")[2]]
        first = [(key, d) for key, d in routed if d.attempt == 0]
        if not first:
            return None
        further = [self._cost_usd(key) for key, d in routed if d.attempt > 0]
        sources = Counter(source for key, _ in first for source in self._rated(key))
        return Read(
            traffic=self._traffic([key for key, _ in first], [d for _, d in first]),
            first_at=first[0][1].decided_at,
            last_at=first[-1][1].decided_at,
            attempts=len(further),
            attempts_usd=float(np.nansum(further)),
            by_name=len(own) - len(routed),
            sources=sources,
        )

    def _traffic(self, keys: Sequence[str], decided: Sequence[_Decided]) -> Traffic:
        models = tuple(dict.fromkeys(name for d in decided for name in d.candidates))
        columns = {name: k for k, name in enumerate(models)}
        places = {d.candidates: [columns[name] for name in d.candidates] for d in decided}

        def laid(values: Iterable["array[float]"]) -> Matrix:
            table = np.zeros((len(decided), len(models)))
            for i, (d, row) in enumerate(zip(decided, values, strict=True)):
                table[i, places[d.candidates]] = row
            return table

        ratings = [list(self._rated(key).values()) for key in keys]
        return Traffic(
            models=models,
            probabilities=laid(d.probabilities for d in decided),
            quality_mean=laid(d.quality_mean for d in decided),
            expected_usd=laid(d.expected_usd for d in decided),
            strategy=laid(d.strategy for d in decided),
            chosen=np.array([columns[d.chosen] for d in decided], dtype=np.int64),
            quality=np.array([sum(given) / len(given) if given else np.nan for given in ratings]),
            cost_usd=np.array([self._cost_usd(key) for key in keys]),
        )

    def _rated(self, key: str) -> dict[str, float]:
        """By source: what counts."""
        return {source: q for source, (_, q) in self._ratings.get(key, {}).items() if q is not None}

    def _cost_usd(self, key: str) -> float:
        """As charged, or as all of its calls were billed; NaN where nobody knows."""
        in_turn = sorted(self._charges.get(key, {}).values(), key=lambda charge: charge[0])
        charged = [usd for _, usd in in_turn if usd is not None]
        billed = [usd for *_, usd in self._calls.get(key, ())]
        known = billed and None not in billed
        return float(charged[-1] if charged else max(sum(billed), 0.0) if known else np.nan)

    def _read(self, path: Path) -> None:
        self.files += 1
        with path.open("rb") as file:
            for line in file:
                self.lines += 1
                try:
                    self._take(orjson.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError):
                    self.torn += 1

    def _take(self, line: Mapping[str, Any]) -> None:
        key = line["decision_id"]
        match line["kind"]:
            case "decision":
                self._decided[key] = _Decided.of(line, self._names)
            case "call":  # written twice it counts once
                status, cost_usd = line["status"], _within(line["cost_usd"], least=-ROUNDED_USD)
                if cost_usd is None and status in UNANSWERED:
                    cost_usd = 0.0
                told = (status, line["model"], line["latency_s"], cost_usd)
                self._calls.setdefault(key, set()).add(told)
            case "rating":
                _later(self._ratings.setdefault(key, {}), line, line["quality"], most=1.0)
            case "charge":
                _later(self._charges.setdefault(key, {}), line, line["cost_usd"], most=np.inf)
            case _:
                raise ValueError("a line of a kind that is none of ours")


def _later(
    given: dict[str, tuple[float, float | None]], line: Mapping[str, Any], value: float | None, *, most: float
) -> None:
    """The value accepted last counts. ValueError for one that is none."""
    value = _within(value, most=most)
    source, at = line["source"], float(line["at"])
    if source not in given or given[source][0] <= at:
        given[source] = (at, value)


def _within(value: float | None, *, least: float = 0.0, most: float = np.inf) -> float | None:
    """ValueError or TypeError for what is no such number."""
    if not (value is None or least <= value <= most):
        raise ValueError(f"a value is from {least:g} to {most:g}")
    return value


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise LogError(f"{folder} is no folder")
        yield from sorted(path for path in folder.iterdir() if day_of(path) is not None)


def _numbers(values: Sequence[float | None]) -> "array[float]":
    """None, where nothing was expected, is 0: any expectation that was there before the outcome will do."""
    return array("d", [0.0 if value is None else value for value in values])
