"""From an embedder's vectors to a projection, and from that to the features that gateway and simulation share."""

from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest

from bandit.classifier import classifier_from_json
from bandit.embedding import projection_from_json
from bandit.features import DIMENSION, POINTING, TASKS, context_of
from bandit.prior import prior_from_json
from bandit.prompt import Prompt
from bandit.words import DIRECTIONS, mean_direction
from simulations import __main__ as commands
from simulations import fit_classifier, fit_embedder, fit_prior, vectors
from simulations.__main__ import main
from simulations.datasets import DatasetError
from simulations.fit_embedder import TEXTS_MIN, features_of, fit
from simulations.world import Facts, contexts_of


def words_vectors(n=1500, E=32, noise=0.0, seed=0):
    """Texts, and vectors that are the mean of one for each of their words, with noise."""
    rng = np.random.default_rng(seed)
    known = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]
    own = rng.normal(size=(300, E))
    rows = [rng.integers(0, 300, rng.integers(4, 30)) for _ in range(n)]
    texts = [" ".join(known[i] for i in row) for row in rows]
    return texts, np.array([own[row].mean(axis=0) for row in rows]) + noise * rng.normal(size=(n, E))


def test_directions_are_uncorrelated_and_vary_as_much_each():
    texts, told = words_vectors()
    projection = fit(texts, told, "tiny")
    directions = np.array([projection.directions(vector) for vector in told])
    np.testing.assert_allclose(directions.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(directions.T @ directions / len(texts), np.eye(DIRECTIONS), atol=1e-4)


def test_words_guess_what_an_embedder_of_words_would_say_of_texts_that_it_has_not_seen():
    texts, told = words_vectors(6000)
    projection = fit(texts[:5000], told[:5000], "tiny")
    directions = np.array([projection.directions(vector) for vector in told[5000:]])
    guessed = np.array([mean_direction(text, projection.version.words) for text in texts[5000:]])
    left = ((directions - guessed) ** 2).mean(axis=0) / directions.var(axis=0)
    assert left.max() < 0.4


@pytest.mark.parametrize(
    ("n", "E", "rank", "what"),
    [
        (TEXTS_MIN - 1, 32, 32, f"at least {TEXTS_MIN} different texts"),
        (TEXTS_MIN, 32, 0, "of which 0 have such vectors"),
        (TEXTS_MIN, DIRECTIONS - 1, DIRECTIONS - 1, f"lie in {DIRECTIONS - 1} directions"),
        (TEXTS_MIN, 32, 10, "lie in 9 directions|lie in 10 directions"),
    ],
)
def test_too_few_texts_or_directions_are_refused(n, E, rank, what):
    texts, told = words_vectors(n, E)
    told[:, rank:] = 0
    with pytest.raises(DatasetError, match=what):
        fit(texts, told, "tiny")


@pytest.fixture
def recorded(outcomes, monkeypatch, tmp_path):
    """The data that every command loads; vectors are kept in a folder of the test's."""
    data = outcomes(TEXTS_MIN + 40)
    for module in (fit_embedder, fit_prior, fit_classifier, commands):
        monkeypatch.setattr(module, "load", lambda _: data)
    monkeypatch.setattr(vectors.embed, "__kwdefaults__", {"cache": tmp_path / "cache", "progress": False})
    return data


def test_the_commands_hand_over_from_texts_to_a_projection_to_priors_for_its_features(
    recorded, endpoint, tmp_path, capsys
):
    where = ["--base-url", endpoint.base_url]
    projected = tmp_path / "projection.json"
    assert main(["fit-embedder", "DIR", *where, "--model", "tiny", "--out", str(projected)]) == 0
    assert f"{len(recorded.prompts)} texts as tiny sees them, 24 numbers each" in capsys.readouterr().out
    projection = projection_from_json(projected.read_text())
    options = Namespace(embedder=projected, base_url=endpoint.base_url, api_key_env=None)
    features = features_of(options, [recorded])
    assert (features.tag, features.d) == (projection.version.tag, DIMENSION)
    for prompt, context in zip(recorded.prompts, contexts_of(recorded.prompts, features), strict=True):
        directions = projection.directions(endpoint.vector_of(prompt.text))
        as_a_gateway = context_of(
            Prompt(prompt.text, chars=len(prompt.text), task=prompt.task_family),
            projection.version,
            directions,
        )
        assert np.array_equal(context.x, as_a_gateway.x)
    again = ["--embedder", str(projected), *where]
    prior, classifier = tmp_path / "prior.json", tmp_path / "classifier.json"
    assert main(["fit-prior", "DIR", *again, "--out", str(prior)]) == 0
    assert prior_from_json(prior.read_text()).features == projection.version.tag
    assert main(["fit-classifier", "DIR", *again, "--out", str(classifier)]) == 0
    assert classifier_from_json(classifier.read_text(), projection.version.tag).kinds
    bench = ["bench", "quality", "DIR", *again, "--part", "gaps", "--policy", "random", "--seeds", "1"]
    for known in ("shipped", str(prior)):
        assert main([*bench, "--limit", "30", "--prior", known]) == 0
    asked = sum(len(body["input"]) for _, body, _ in endpoint.asked)
    assert asked == len(recorded.prompts)  # each text once, whatever came after


def test_without_an_embedder_the_features_are_those_that_ship():
    assert features_of(Namespace(embedder=None), []) == Facts()


@pytest.mark.usefixtures("recorded")
def test_a_model_that_no_wheel_holds_needs_an_endpoint(tmp_path, capsys):
    out = tmp_path / "projection.json"
    assert main(["fit-embedder", "DIR", "--model", "text-embedding-9", "--out", str(out)]) != 0
    assert "--base-url is needed to ask for text-embedding-9" in capsys.readouterr().err
    assert not out.exists()


def test_tasks_may_be_left_out():
    texts, told = words_vectors(TEXTS_MIN)
    features = fit_embedder.Embedded(fit(texts, told, "tiny"), dict(zip(texts, told, strict=True)))
    named, unnamed = (
        replace(features, tasks=t).context(Prompt(texts[0], task="code")).x for t in (True, False)
    )
    assert named[-TASKS:].sum() == 1
    assert not unnamed[-TASKS:].any()
    assert np.array_equal(named[POINTING], unnamed[POINTING])
