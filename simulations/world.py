"""A world: everything that will happen along one stream, whoever plays it.

It is the recorded matrix laid out by position: what each arm's answer to request n is worth and takes, which arms are on
offer at which prices, and what raters will say of each answer and when. All chance is drawn beforehand, so every player
meets the same world. Scenarios (simulations.scenarios) are changes to a world.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from bandit.arms import Arm
from bandit.features import DIMENSION, TAG, context_of
from bandit.prompt import Prompt
from bandit.types import Context, Matrix, Vector
from simulations.datasets import Dataset, RecordedPrompt

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RECORDED: Final = "recorded"  # the source of ratings that are the recorded qualities themselves


class Space(Protocol):
    """Where feature vectors live: tag names the version of their map; they have d entries, the first of which is 1."""

    @property
    def tag(self) -> bytes: ...

    @property
    def d(self) -> int: ...


@dataclass(frozen=True, slots=True)
class SpaceOf:
    """The space alone, to hand to players in other processes: a map may be heavy."""

    tag: bytes
    d: int


class Features(Space, Protocol):
    """A feature map: what a prompt looks like to a policy."""

    def context(self, prompt: Prompt) -> Context: ...


@dataclass(frozen=True, slots=True)
class Facts:
    """The features of bandit.features. tasks: the caller names the task of each request, as a gateway's caller may."""

    tag: bytes = TAG
    d: int = DIMENSION
    tasks: bool = True

    def context(self, prompt: Prompt) -> Context:
        return context_of(prompt if self.tasks else replace(prompt, task=""))


@dataclass(frozen=True, slots=True)
class Phase:
    """Requests start to stop (exclusive), during which these arms are on offer at these prices."""

    name: str
    start: int
    stop: int
    candidates: tuple[Arm, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """One source of ratings. told: (n, K) what it says of each arm's answer, NaN where it says nothing. delay: (n,)
    after how many further requests; 0 is before the next one.
    """

    source: str
    told: Floats
    delay: Integers


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """n requests, K arms. rows: (n,) of the dataset. quality, cost_usd, tokens_in, tokens_out: (n, K), the truth.

    All arrays are by position; `laid_out` puts the requests in another order.
    phases: cover 0 to n without a gap. channels: of ratings; costs and tokens are always told at once.
    """

    name: str
    arms: tuple[str, ...]
    rows: Integers
    quality: Floats
    cost_usd: Floats
    tokens_in: Integers
    tokens_out: Integers
    phases: tuple[Phase, ...]
    channels: tuple[Channel, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def offered(self) -> NDArray[np.bool_]:
        """(n, K) which arms may be chosen."""
        offered = np.zeros(self.quality.shape, dtype=np.bool_)
        for phase in self.phases:
            names = {arm.name for arm in phase.candidates}
            offered[phase.start : phase.stop] = [name in names for name in self.arms]
        return offered


def laid_out(world: World, order: Integers) -> World:
    """The same requests in another order; phases keep their positions."""
    return replace(
        world,
        rows=world.rows[order],
        quality=world.quality[order],
        cost_usd=world.cost_usd[order],
        tokens_in=world.tokens_in[order],
        tokens_out=world.tokens_out[order],
        channels=tuple(Channel(c.source, c.told[order], c.delay[order]) for c in world.channels),
    )


def recorded_world(dataset: Dataset, rows: Sequence[int] | Integers) -> World:
    """The dataset's rows in that order, as they were recorded: one phase, every answer rated truly and at once."""
    rows = np.asarray(rows, dtype=np.int64)
    quality = dataset.quality[rows]
    return World(
        name=dataset.name,
        arms=tuple(arm.name for arm in dataset.arms),
        rows=rows,
        quality=quality,
        cost_usd=dataset.cost_usd[rows],
        tokens_in=dataset.tokens_in[rows],
        tokens_out=dataset.tokens_out[rows],
        phases=(Phase("whole", 0, len(rows), dataset.arms),),
        channels=(Channel(RECORDED, quality, np.zeros(len(rows), dtype=np.int64)),),
    )


def contexts_of(prompts: Sequence[RecordedPrompt], features: Features) -> tuple[Context, ...]:
    """Each prompt as a policy sees it."""
    return tuple(
        features.context(
            Prompt(user=prompt.text, chars=len(prompt.text), tools=prompt.tools, task=prompt.task_family)
        )
        for prompt in prompts
    )


def with_features(contexts: Sequence[Context], x: Matrix) -> tuple[Context, ...]:
    """The same requests with other features: x (n, d), rounded to float16 as all features are."""
    rounded = x.astype(np.float16).astype(np.float64)
    return tuple(Context(row, context.needs) for row, context in zip(rounded, contexts, strict=True))


def bias_alone(contexts: Sequence[Context]) -> tuple[Context, ...]:
    """Contexts that tell nothing: x = (1, 0, ..., 0)."""
    x: Vector = np.eye(1, len(contexts[0].x))[0]
    return with_features(contexts, np.tile(x, (len(contexts), 1)))


def of_another(contexts: Sequence[Context], rng: np.random.Generator) -> tuple[Context, ...]:
    """Each request with the features of another one, drawn at random: as large as they are, and about nothing."""
    return with_features(contexts, np.stack([contexts[k].x for k in rng.permutation(len(contexts))]))


def pure_noise(contexts: Sequence[Context], rng: np.random.Generator) -> tuple[Context, ...]:
    """Contexts that seem to tell something: behind the bias, independent standard normals within the features' range."""
    x = np.clip(rng.normal(size=(len(contexts), len(contexts[0].x))), -4.0, 4.0)
    x[:, 0] = 1.0
    return with_features(contexts, x)
