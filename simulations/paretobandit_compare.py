"""ParetoBandit's published experiments, its wheel and our router side by side on the same streams.

    python -m simulations paretobandit --data DIR --seeds 20 --vectors minilm

Its wheel starts with its warm priors, from 8,374 prompts with every model's score; ours starts from nothing. Streams are
played in worker processes on all cores. A worker returns only which arm was chosen at each step; every figure is computed
from that and the world, which anyone can rebuild from the experiment and the seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandit.features import DIMENSION as FACTS
from bandit.objective import Quality
from bandit.policy import Thompson
from bandit.quality import SharedBaseline
from bandit.types import Context, Matrix
from simulations import paretobandit_protocol as protocol
from simulations.clusters import k_means, soft_clusters
from simulations.grid import run_tasks
from simulations.learner import Contestant, Learner
from simulations.minilm import embed
from simulations.paced import PacedLearner
from simulations.paretobandit_protocol import Experiment
from simulations.paretobandit_rival import COLD, ParetoBandit, Settings, its_vectors, running
from simulations.player import Player
from simulations.stream import play
from simulations.world import Facts, SpaceOf, World, contexts_of, with_features

Floats = NDArray[np.float64]
Chosen = NDArray[np.int64]

VECTORS: Final = ("default", "minilm", "pca")
CLUSTERS: Final = 32
OURS: Final = "ours"
ITS: Final = "paretobandit"
ITS_COLD: Final = "paretobandit-cold"


class Task(NamedTuple):
    """One stream. budget: its name in the experiment."""

    experiment: str
    budget: str
    contestant: str
    seed: int


@dataclass(frozen=True, slots=True)
class Setting:
    """data: a folder with the newcomer's outcomes, or None. vectors: what our side decides on, of VECTORS:

    default   our own features of the text
    minilm    the same, and 32 soft clusters of the MiniLM embeddings that the other side's vectors are made of; the
              centroids are fitted on the val prompts, whose outcomes they never see
    pca       the other side's own vectors
    """

    data: Path | None
    vectors: str


def prepare(setting: Setting, names: Sequence[str] | None, *, progress: bool) -> list[Experiment]:
    """These experiments, or all of them. Embeddings and vectors are made and kept, so that workers find them.

    ValueError for a name that no experiment has.
    """
    known = {experiment.name: experiment for experiment in protocol.experiments(setting.data)}
    for name in names or ():
        if name not in known:
            missing = "" if setting.data else " (the onboarding ones need --data)"
            raise ValueError(f"there is no experiment {name!r}; known are {', '.join(known)}{missing}")
    wanted = [known[name] for name in names or known]
    for experiment in wanted:
        its_vectors(experiment.texts(), progress=progress)
        _contexts(setting, experiment.name)
    return wanted


def compare(
    setting: Setting, tasks: Sequence[Task], *, progress: bool, cluster: str | None = None
) -> dict[Task, Chosen]:
    done = run_tasks(play_task, tasks, setting, cluster=cluster, title="streams", progress=progress)
    return dict(done)


def play_task(setting: Setting, task: Task) -> Chosen:
    """(n,) columns of the chosen arms."""
    experiment = _experiments(setting.data)[task.experiment]
    world, budget_usd = experiment.world(task.seed), experiment.budgets_usd[task.budget]
    contexts = _contexts(setting, task.experiment)
    if task.contestant == OURS:
        return _choices(world, contexts, ours(setting, budget_usd, f"{task.experiment}:{task.seed}"), None)
    vectors = its_vectors(experiment.texts())
    start = COLD if task.contestant == ITS_COLD else Settings()
    with running() as process:
        player = ParetoBandit(process, start.within(budget_usd), seed=task.seed)
        return _choices(world, contexts, player, vectors)


def ours(setting: Setting, budget_usd: float | None, stream: str) -> Player:
    """The router from a cold start, as it ships."""
    policy, model, space = Thompson(Quality()), SharedBaseline(), space_of(setting.vectors)
    if budget_usd is None:
        return Learner(Contestant("router", policy, model), space, stream=stream)
    return PacedLearner(policy, model, space, usd_per_request=budget_usd, stream=stream)


def space_of(vectors: str) -> SpaceOf:
    match vectors:
        case "default":
            return SpaceOf(Facts().tag, Facts().d)
        case "minilm":
            return SpaceOf(b"minilm32", FACTS + CLUSTERS)
        case _:
            return SpaceOf(b"minipc25", 26)


def _choices(world: World, contexts: Sequence[Context], player: Player, vectors: Matrix | None) -> Chosen:
    columns = {name: k for k, name in enumerate(world.arms)}
    steps = play(world, contexts, player, vectors=vectors)
    return np.array([columns[step.choice.arm] for step in steps])


@cache
def _experiments(data: Path | None) -> Mapping[str, Experiment]:
    return {experiment.name: experiment for experiment in protocol.experiments(data)}


@lru_cache(maxsize=8)
def _contexts(setting: Setting, name: str) -> tuple[Context, ...]:
    """Of the experiment's prompts, by row, with our side's features."""
    experiment = _experiments(setting.data)[name]
    facts = contexts_of(experiment.prompts, Facts())
    match setting.vectors:
        case "default":
            return facts
        case "minilm":
            memberships = soft_clusters(_centroids(), embed(experiment.texts()))[:, 1:]
            return with_features(facts, np.column_stack([[context.x for context in facts], memberships]))
        case _:
            return with_features(facts, np.roll(its_vectors(experiment.texts()), 1, axis=1))  # bias first


@cache
def _centroids() -> Floats:
    """Of the embeddings of the val prompts."""
    stationary = _experiments(None)["stationary"]
    return k_means(embed(stationary.texts())[: protocol.VAL], CLUSTERS)


def tasks_of(experiment: Experiment, *, seeds: int, sides: Sequence[str]) -> list[Task]:
    """Every stream of an experiment. Without a budget ParetoBandit also plays from a cold start."""
    played = []
    for budget in experiment.budgets_usd:
        cold = experiment.name == "unconstrained"
        for side in sides:
            for contestant in (ITS, ITS_COLD) if side == ITS and cold else (side,):
                first = experiment.first_seed
                played += [Task(experiment.name, budget, contestant, s) for s in range(first, first + seeds)]
    return played
