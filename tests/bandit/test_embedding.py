"""A projection: what it makes of a vector, what its words guess, and files that will not do."""

import json
from base64 import b64encode
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.embedding import Projection, projection_from_json
from bandit.features import NAMES, POINTING, SHIPPED, context_of
from bandit.prompt import Prompt
from bandit.words import BUCKETS, DIRECTIONS, mean_direction

E = 24


def made(seed=0, **changes):
    rng = np.random.default_rng(seed)
    arrays = {
        "centre": rng.normal(size=E) / 10,
        "axes": rng.normal(size=(E, DIRECTIONS)),
        "rows": rng.normal(size=(BUCKETS, DIRECTIONS)),
        "offset": rng.normal(size=DIRECTIONS) / 10,
    }
    return Projection("tiny", **{n: a.astype(np.float32) for n, a in (arrays | changes).items()})


PROJECTION = made()


def test_a_vector_is_brought_to_unit_length_centred_and_projected():
    vector = np.arange(1.0, E + 1)
    unit = vector / np.linalg.norm(vector)
    expected = (unit - PROJECTION.centre) @ PROJECTION.axes.astype(float)
    np.testing.assert_allclose(PROJECTION.directions(vector.tolist()), expected, rtol=1e-12)


@given(st.floats(1e-300, 1e300))
def test_an_embedders_scale_does_not_matter(scale):
    vector = np.linspace(-1, 2, E)
    np.testing.assert_allclose(
        PROJECTION.directions(scale * vector), PROJECTION.directions(vector), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("vector", "what"),
    [
        ([1.0] * (E - 1), f"a list of {E} numbers.*of shape \\({E - 1},\\)"),
        ([[1.0] * E], "of shape"),
        ([0.0] * E, "not all 0"),
        ([float("nan")] * E, "finite"),
        ([float("inf")] * E, "finite"),
        ([10**400] * E, "a list of numbers"),
        (["a"] * E, "a list of numbers"),
        ([[1.0], [1.0, 2.0]], "a list of numbers"),
        (None, "numbers"),
        ({"a": 1}, "numbers"),
    ],
)
def test_what_is_no_vector_of_this_embedder_is_refused(vector, what):
    with pytest.raises(ValueError, match=what):
        PROJECTION.directions(vector)


def test_directions_stand_where_words_do_and_all_else_is_the_same():
    prompt = Prompt("Sort this list, please.", system="Be brief.", turns=2, tools=True, task="code")
    directions = np.linspace(-2, 2, DIRECTIONS)
    told = context_of(prompt, PROJECTION.version, directions).x
    guessed = context_of(prompt, PROJECTION.version).x
    shipped = context_of(prompt).x
    np.testing.assert_allclose(told[POINTING], directions, atol=2e-3)  # in float16
    words = mean_direction(prompt.user.lower(), PROJECTION.version.words)
    np.testing.assert_allclose(guessed[POINTING], words, atol=2e-3)
    for x in (told, guessed):
        rest = np.delete(x, POINTING)
        assert np.array_equal(rest, np.delete(shipped, POINTING))
    assert not np.array_equal(guessed[POINTING], shipped[POINTING])
    assert list(NAMES[POINTING]) == [f"words-{k}" for k in range(DIRECTIONS)]


def test_a_version_is_of_one_projection_and_whatever_belongs_to_it():
    versions = {made(seed).version.tag for seed in range(3)} | {SHIPPED.tag}
    assert len(versions) == 4
    assert made().version.tag == PROJECTION.version.tag
    for other in (replace(PROJECTION, model="other"), replace(PROJECTION, offset=PROJECTION.offset + 1)):
        assert other.version.tag != PROJECTION.version.tag
        assert other != PROJECTION


def test_a_file_holds_all_of_it():
    back = projection_from_json(PROJECTION.to_json())
    assert (back, hash(back)) == (PROJECTION, hash(PROJECTION))
    assert back.version.tag == PROJECTION.version.tag
    vector = np.linspace(-1, 2, E)
    assert np.array_equal(back.directions(vector), PROJECTION.directions(vector))


def b64(*shape, value=0.5):
    return b64encode(np.full(shape, value, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"version": 2}, "of version 1, as fit-embedder writes it"),
        ({"model": ""}, "model should be what the embedder calls its model"),
        ({"model": None}, "model should be"),
        ({"centre": "%%%"}, "centre should be 32-bit floats in base64"),
        ({"centre": None}, "centre should be 32-bit floats in base64"),
        ({"centre": "AAAA"}, "centre should be 32-bit floats"),
        ({"centre": ""}, "centre should have some rows"),
        ({"centre": b64(E, value=np.nan)}, "centre should hold finite numbers"),
        ({"axes": b64(E - 1, DIRECTIONS)}, f"axes should have {E} rows, not {E - 1}"),
        ({"axes": b64(7)}, "axes should be 32-bit floats"),
        ({"rows": b64(5, DIRECTIONS)}, f"rows should have {BUCKETS} rows, not 5"),
        ({"offset": b64(3)}, f"offset should have {DIRECTIONS} rows, not 3"),
    ],
)
def test_a_file_that_will_not_do_names_its_field(changes, what):
    content = json.loads(PROJECTION.to_json()) | changes
    with pytest.raises(ValueError, match=what):
        projection_from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", "no json", "[" * 100_000, "{}"])
def test_what_is_no_file_of_it_is_refused(text):
    with pytest.raises(ValueError, match="JSON"):
        projection_from_json(text)
