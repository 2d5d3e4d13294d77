"""`prior:` of a route: what ships, nothing, or a file of fit-prior that is for the vectors that requests are decided on."""

from dataclasses import replace

import pytest

from bandit.features import DIMENSION
from bandit.prior import QualityPrior
from feedback.priors import shipped_prior
from service.config import parse_settings
from service.config_problems import ConfigError
from service.routes import quality_model

CONFIG = """
models:
  small: {base_url: "http://127.0.0.1:1/v1", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
routes:
  auto: {models: [small], usd_per_quality: 0.05, prior: PRIOR}
"""


def settings(folder, prior):
    text = CONFIG.replace("PRIOR", prior)
    return parse_settings(text, source="gateway.yaml", folder=folder, environ={})


def written(folder, **changes):
    prior = replace(shipped_prior(), **{"noise_weight": 7.0, **changes})
    (folder / "mine.json").write_text(prior.to_json())
    return prior


def test_a_file_of_ones_own_is_what_the_route_begins_with(tmp_path):
    prior = written(tmp_path)
    model = quality_model(settings(tmp_path, "mine.json"), "auto")
    assert model.prior.to_json() == prior.to_json()
    assert model.fit({}, DIMENSION).noise_variance == pytest.approx(prior.noise_variance)
    assert quality_model(settings(tmp_path, "none"), "auto").prior is None
    assert quality_model(settings(tmp_path, "shipped"), "auto").prior is shipped_prior()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "no JSON"),
        ("{}", "of version 2, as fit-prior writes it"),
        (replace(QualityPrior.flat(DIMENSION), features=b"another!").to_json(), "run fit-prior again"),
        (QualityPrior.flat(3).to_json(), f"fitted for 3 features, these are {DIMENSION}"),
    ],
)
def test_a_file_that_will_not_do_is_told_at_its_line(tmp_path, content, told):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, "mine.json")
    (problem,) = str(caught.value).splitlines()
    assert problem.startswith("gateway.yaml:5: routes.auto.prior: ")
    assert told in problem
