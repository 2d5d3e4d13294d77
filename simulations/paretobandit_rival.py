"""ParetoBandit as a player: its own wheel in a process of its own, at the other end of a pipe.

It decides on its own vectors (MiniLM, its PCA, a bias at the end: 26 numbers) that its own feature code makes, on its own
posterior and with its own pacer. What happens to its registry while it plays follows from the candidates it is shown: an
arm it has not seen is registered and then pulled as often as its authors' onboarding experiment forces (20 times), a new
price is told, and an arm that is gone is deleted.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np

from bandit.arms import Arm
from bandit.types import Matrix
from simulations.minilm import embed
from simulations.player import Choice, Lesson, Request
from simulations.vectors import CACHE

DIMENSION: Final = 26
FORCED_PULLS: Final = 20  # of a newcomer; BURNIN_PULLS of its authors' experiment

# Names under which its warm priors know the models.
ITS_NAMES: Final[Mapping[str, str]] = {
    "llama-3.1-8b-instruct": "meta-llama/llama-3.1-8b-instruct",
    "mistral-large-2512": "mistralai/mistral-large-2512",
    "gemini-2.5-pro": "google/gemini-2.5-pro",
    "gemini-2.5-flash": "google/gemini-2.5-flash",
}


class RivalError(RuntimeError):
    """ParetoBandit's process failed or refused; the message is its own."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How its router starts. Defaults: the published warm start (its BEST_K3_HPARAMS).

    prior_n_effective: pseudo-observations of the warm priors. alpha: UCB width. budget_usd: mean USD per request that its
    pacer holds, or None for no pacer. forced_pulls: of an arm that joins later.
    """

    warm: bool = True
    prior_n_effective: float = 1163.9
    alpha: float = 0.01
    forgetting_factor: float = 0.997
    budget_usd: float | None = None
    forced_pulls: int = FORCED_PULLS

    def within(self, budget_usd: float | None) -> "Settings":
        return replace(self, budget_usd=budget_usd)


COLD: Final = Settings(warm=False, prior_n_effective=1.0, alpha=0.05)  # its BEST_K3_TABULA_RASA_HPARAMS


class RivalProcess:
    """The pipe to the process. Use `running()`."""

    def __init__(self, child: "subprocess.Popen[str]") -> None:
        self._child = child

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps({"do": do, **command}) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise RivalError(self._ended(do)) from None
        line = self._child.stdout.readline()
        if not line:
            raise RivalError(self._ended(do))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RivalError(f"ParetoBandit refused {do!r}: {answer['error']}")
        return answer

    def _ended(self, do: str) -> str:
        return f"ParetoBandit's process ended at {do!r} (exit code {self._child.wait()}); is 'fairlead[bench]' installed?"


@contextmanager
def running() -> Iterator[RivalProcess]:
    """ParetoBandit's process, ended when the block is left."""
    command = [sys.executable, "-m", "simulations.paretobandit_rival_process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        try:
            yield RivalProcess(child)
        finally:
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # it ended before
                child.stdin.close()  # its loop ends with its input


def its_vectors(texts: Sequence[str], *, cache: Path = CACHE, progress: bool = False) -> Matrix:
    """(n, 26) the vectors of ParetoBandit's own FeatureService: 25 principal components, then the bias."""
    kept = cache / f"paretobandit-{_content_hash(texts)}.npy"
    if not kept.exists():
        embeddings = embed(texts, cache=cache, progress=progress)
        with tempfile.TemporaryDirectory(dir=cache) as folder, running() as process:
            told, made = Path(folder) / "embeddings.npy", Path(folder) / "vectors.npy"
            np.save(told, embeddings)
            ask = {"texts": list(texts), "dimension": embeddings.shape[1]}
            process.ask("features", **ask, embeddings=str(told), out=str(made))
            made.replace(kept)
    vectors: Matrix = np.load(kept)
    return vectors


def _content_hash(texts: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


_names: Final = count()


@dataclass(slots=True, eq=False)
class ParetoBandit:
    """One stream's player. Every request needs its `vector` (26,), as `its_vectors` makes it.

    seed: of its tie-breaks, which decide only where nothing was learned yet.
    """

    process: RivalProcess
    settings: Settings = Settings()
    seed: int = 0
    dual: float = 0.0  # its pacer's lambda at the last choice
    _name: str = field(default_factory=lambda: str(next(_names)))
    _prices: dict[str, tuple[float, float]] = field(default_factory=dict)
    _owed: dict[str, int] = field(default_factory=dict)  # forced pulls that a newcomer still has
    _forced: dict[int, list[float]] = field(default_factory=dict)  # n -> the vector of a forced pull

    def choose(self, request: Request) -> Choice:
        if request.vector is None:
            raise ValueError("ParetoBandit decides on its own vectors: give every request its `vector`")
        self._follow(request.candidates)
        x = [float(value) for value in request.vector]
        for arm, pulls in self._owed.items():
            if pulls > 0:
                self._owed[arm] = pulls - 1
                self._forced[request.n] = x
                return Choice(arm)
        answer = self._ask("route", n=request.n, x=x)
        self.dual = answer["lambda"]
        return Choice(_ours(answer["arm"]))

    def learn(self, lesson: Lesson) -> None:
        told = {"reward": lesson.quality, "cost_usd": lesson.cost_usd}
        x = self._forced.pop(lesson.n, None)
        if x is None:
            self._ask("feedback", n=lesson.n, **told)
        else:
            self._ask("forced", arm=_its(lesson.arm), x=x, **told)

    def _follow(self, candidates: Sequence[Arm]) -> None:
        """Tell its registry what has changed since the last request."""
        now = {arm.name: (arm.price_usd_per_mtok_in, arm.price_usd_per_mtok_out) for arm in candidates}
        if now == self._prices:
            return
        if not self._prices:
            self._create(now)
        for name in self._prices.keys() - now.keys():
            self._ask("withdraw", arm=_its(name))
            self._owed.pop(name, None)
        for name, (price_in, price_out) in now.items():
            prices = {"arm": _its(name), "input_cost_per_m": price_in, "output_cost_per_m": price_out}
            if self._prices and name not in self._prices:
                self._ask("register", speed="fast", **prices)
                self._owed[name] = self.settings.forced_pulls
            elif self._prices and self._prices[name] != (price_in, price_out):
                self._ask("price", **prices)
        self._prices = now

    def _create(self, prices: Mapping[str, tuple[float, float]]) -> None:
        registry = {
            _its(name): {
                "model_id": _its(name),
                "display_name": name,
                "input_cost_per_m": i,
                "output_cost_per_m": o,
            }
            for name, (i, o) in prices.items()
        }
        s = self.settings
        self._ask(
            "create",
            registry=registry,
            dimension=DIMENSION,
            warm=s.warm,
            prior_n_effective=s.prior_n_effective,
            alpha=s.alpha,
            forgetting_factor=s.forgetting_factor,
            budget_usd=s.budget_usd,
            seed=self.seed,
        )

    def _ask(self, do: str, **command: Any) -> dict[str, Any]:
        return self.process.ask(do, router=self._name, **command)


def _its(name: str) -> str:
    return ITS_NAMES.get(name, name)


_OURS: Final = {its: ours for ours, its in ITS_NAMES.items()}


def _ours(name: str) -> str:
    return _OURS.get(name, name)
