"""Changes within a configuration's text, against the same changes of what the text means."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from service.registry import with_model, write_whole

BLOCK = """\
# the models
models:
  small:                 # cheap
    base_url: http://a.test/v1
    price_usd_per_mtok_in: 1    # USD
    price_usd_per_mtok_out: 2

  # the dear one
  large: {base_url: "http://b.test/v1", price_usd_per_mtok_in: 10, price_usd_per_mtok_out: 20}  # dear

routes:
  auto:
    models:
      - small
      - large  # last
    usd_per_quality: 0.05
  flow: {models: [small, large], strategy: fixed}
# the end
"""
FLOW = '{"models": {"small": {"base_url": "http://a.test", "price_usd_per_mtok_in": 1}}, "routes": {"auto": {"models": ["small"]}}}'
names = st.sampled_from(["small", "large", "new", "v/m:1@x", 'odd "name"', "é"])
fields = st.dictionaries(
    st.sampled_from(["price_usd_per_mtok_in", "upstream_model", "withdrawn", "base_url", "tools"]),
    st.none()
    | st.booleans()
    | st.integers(0, 9)
    | st.sampled_from([0.25, 12.5])
    | st.text("ab: #'\"{}[],\n\té", max_size=8),
)


@given(st.sampled_from([BLOCK, FLOW]), names, fields, st.sets(st.sampled_from(["auto", "flow"])))
@settings(deadline=None)
def test_a_change_of_the_text_is_the_same_change_of_its_meaning(text, name, new, routes):
    meant = yaml.safe_load(text)
    routes = sorted(routes & set(meant["routes"]))
    entry = {**meant["models"].get(name, {}), **new}
    meant["models"][name] = {key: value for key, value in entry.items() if value is not None}
    for route in routes:
        if name not in meant["routes"][route]["models"]:
            meant["routes"][route]["models"].append(name)
    assert yaml.safe_load(with_model(text, name, new, routes)) == meant


def test_everything_else_stays_as_it_was_written():
    changed = with_model(BLOCK, "large", {"price_usd_per_mtok_in": 5})
    assert changed == BLOCK.replace(
        '{base_url: "http://b.test/v1", price_usd_per_mtok_in: 10, price_usd_per_mtok_out: 20}',
        '{"base_url":"http://b.test/v1","price_usd_per_mtok_in":5,"price_usd_per_mtok_out":20}',
    )
    added = with_model(BLOCK, "new", {"base_url": "x"}, ["auto", "flow"])
    for comment in ("# the models", "# cheap", "# the dear one", "# dear", "# last", "# the end"):
        assert comment in added
    assert '  "new": {"base_url":"x"}\n' in added
    assert '      - "new"\n' in added
    assert '[small, large, "new"]' in added


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text("before")
    path.chmod(0o640)
    write_whole(path, "after é")
    assert path.read_text(encoding="utf-8") == "after é"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["gateway.yaml"]


def test_a_file_that_cannot_be_replaced_stays(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "nowhere" / "gateway.yaml", "x")
