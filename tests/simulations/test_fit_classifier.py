"""The classifier finds kinds that are there, and its command writes what a gateway reads."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import log_softmax

from bandit.classifier import Kind, classifier_from_json
from bandit.features import TAG
from simulations import fit_classifier
from simulations.__main__ import main
from simulations.fit_classifier import FAMILY_MIN, OTHER, RIDGE, fitted, kinds_of, qualities, regressed
from simulations.world import Facts, contexts_of


def test_it_tells_kinds_apart_that_texts_tell_apart_on_prompts_it_has_not_seen(outcomes):
    classifier = fitted([outcomes(400, seed=1)])
    fresh = outcomes(200, seed=2)
    for named in (True, False):
        right = 0
        for prompt, context in zip(
            fresh.prompts, contexts_of(fresh.prompts, Facts(tasks=named)), strict=True
        ):
            p = classifier.probabilities(context.x)
            right += classifier.kinds[int(np.argmax(p))].task == prompt.task_family
        assert right > 195


def test_families_are_divided_at_the_median_ease_and_small_ones_are_one(outcomes):
    data = outcomes(FAMILY_MIN + 100, hard_share=0.1, seed=3)
    small = sum(p.task_family == "code" for p in data.prompts)
    assert small < FAMILY_MIN
    kinds = kinds_of(data)
    assert set(kinds) == {Kind(OTHER), Kind("sums", "easy"), Kind("sums", "hard")}
    ease = data.quality.mean(axis=1)
    easy = [ease[i] for i, kind in enumerate(kinds) if kind.level == "easy"]
    hard = [ease[i] for i, kind in enumerate(kinds) if kind.level == "hard"]
    assert min(easy) >= max(hard)


def test_the_regression_ends_where_its_slope_is_nought():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 3)), rng.integers(0, 3, 80)

    def loss(flat):
        log_p = log_softmax(X @ flat.reshape(3, 3).T, axis=1)
        return -log_p[np.arange(80), y].sum() + RIDGE / 2 * flat @ flat

    found = regressed(X, y, 3).ravel()
    assert np.abs(approx_fprime(found, loss, 1e-6)).max() < 0.02


def test_qualities_are_the_ease_of_a_kind_and_a_lead_drawn_to_the_models_mean_lead(outcomes):
    data = outcomes(50, seed=4)
    y = np.arange(50) % 2
    ease = data.quality.mean(axis=1)
    lead = data.quality[:, 0] - ease
    expected = [ease[y == c].mean() + (lead[y == c].sum() + 10 * lead.mean()) / 35 for c in (0, 1)]
    assert qualities([data], [y], 2)["small"] == pytest.approx(expected, abs=1e-5)


def test_the_command_writes_a_file_that_names_its_sources(outcomes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_classifier, "load", lambda name: outcomes(120, name=name))
    out = tmp_path / "classifier.json"
    assert main(["fit-classifier", "a", "b", "--out", str(out)]) == 0
    assert "3 models" in capsys.readouterr().out
    assert classifier_from_json(out.read_text(), TAG).provenance["sources"] == {"a": 120, "b": 120}
