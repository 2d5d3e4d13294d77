"""`strategy: classifier` through a real gateway: what it chooses, what it records, and files that will not do."""

import json

import numpy as np
import pytest

from bandit.features import DIMENSION, TAG, TASKS, task_bucket
from bandit.prompt import Prompt
from feedback.records import decode_record
from service.config import parse_settings
from service.config_problems import ConfigError

HEAD = """
models:
  small: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
  large: {base_url: "URL", price_usd_per_mtok_in: 10, price_usd_per_mtok_out: 20}
  mine: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2, quality: {code: 0.1, sums: 0.1}}
upstream: {connect_timeout_s: 2, first_byte_timeout_s: 5, idle_timeout_s: 5}
routes:
  auto:
    models: [small, large, mine]
    strategy: classifier
    usd_per_quality: 0.5
    classifier: FILE
"""


def file_of(folder, **changes):
    """Requests whose task is named `code` are code, those named `sums` are sums."""
    weights = np.zeros((2, DIMENSION))
    for row, task in enumerate(("code", "sums")):
        weights[row, task_bucket(Prompt("", task=task)) - TASKS] = 20.0
    content = {
        "version": 1,
        "features": TAG.hex(),
        "kinds": [["code", ""], ["sums", ""]],
        "shares": [0.5, 0.5],
        "quality": {"small": [0.2, 0.9], "large": [0.9, 0.9]},
        "weights": weights.tolist(),
    }
    path = folder / "classifier.json"
    path.write_text(json.dumps(content | changes))
    return path


def started(start_lab, scripts, tmp_path, more=""):
    lab = start_lab(HEAD.replace("FILE", json.dumps(str(file_of(tmp_path)))) + more)
    lab.says(**{name: scripts.says(200, scripts.completion(name)) for name in ("small", "large", "mine")})
    return lab


def records(lab):
    recorder = lab.gateway.learning.routes["default.auto"].recorder
    return [decode_record(record) for record in recorder._unwritten.values()]


def test_the_predicted_kind_decides_and_every_candidate_keeps_its_share_of_the_floor(
    start_lab, scripts, tmp_path
):
    lab = started(start_lab, scripts, tmp_path)
    for task in ("code", "sums"):
        lab.ask(router={"task": task})
    for (prefix, explanation), best in zip(records(lab), ("large", "small"), strict=True):
        names = [name for name, *_ in explanation.told["candidates"]]
        probabilities = dict(zip(names, explanation.probabilities.tolist(), strict=True))
        assert probabilities[best] > 0.98
        assert all(p > 0 for p in probabilities.values())
        assert prefix.propensity > 0
        expected = dict(zip(probabilities, explanation.beliefs[:, 0].tolist(), strict=True))
        assert expected["mine"] == pytest.approx(0.1)


def test_rules_narrow_and_the_classifier_chooses_among_the_rest(start_lab, scripts, tmp_path):
    rules = (
        "    rules: [{when: {keywords: [urgent]}, models: [small, mine]}]\n    exploration_floor: 0.0001\n"
    )
    lab = started(start_lab, scripts, tmp_path, rules)
    ask = [{"role": "user", "content": "urgent!"}]
    assert lab.ask(messages=ask, router={"task": "code"}).json()["model"] == "small"
    ((_, explanation),) = records(lab)
    assert explanation.told["excluded"] == {"large": "rule"}


def test_one_request_may_weigh_otherwise(start_lab, scripts, tmp_path):
    lab = started(start_lab, scripts, tmp_path, "    exploration_floor: 0.0001\n")
    wish = {"task": "code", "objective": "balanced", "usd_per_quality": 1e-9}
    assert lab.ask(router=wish).json()["model"] != "large"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("    classifier: FILE\n", "", "8: routes.auto.classifier: missing"),
        ("strategy: classifier", "strategy: fixed", "acts only with `strategy: classifier`"),
        ("FILE", "nowhere.json", "the file cannot be read: No such file"),
        (", sums: 0.1}", "}", "no quality of mine; give the model `quality:` for sums"),
        ("sums: 0.1", "poems: 0.1", "mine has a quality for 'poems'; known: code, sums"),
        ("    usd_per_quality: 0.5\n", "", "worth in USD"),
        ("sums: 0.1", "sums: 7", "models.mine.quality.sums"),
        (
            "    usd_per_quality: 0.5\n",
            "    usd_per_quality: 0.5\n    prior: none\n",
            "11: routes.auto.prior: acts only with",
        ),
    ],
)
def test_what_is_wrong_is_told_with_what_would_be_right(tmp_path, old, new, told):
    file_of(tmp_path)
    text = HEAD.replace(old, new).replace("FILE", "classifier.json").replace("URL", "http://127.0.0.1:1")
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, source="gateway.yaml", folder=tmp_path, environ={})
    assert told.split(": ", 1)[-1] in str(caught.value)


def test_a_file_for_other_features_is_refused_by_name(tmp_path):
    file_of(tmp_path, features="00")
    text = HEAD.replace("FILE", "classifier.json").replace("URL", "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"routes.auto.classifier.*fit-classifier again"):
        parse_settings(text, source="gateway.yaml", folder=tmp_path, environ={})
