"""The report's picture and page, looked at as a reader's eye would: by their pixels and their text."""

import struct
from base64 import b64encode
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread

from simulations.page import Section, write_page
from simulations.pictures import Course, draw_courses
from simulations.tables import Row, as_html

MODELS = ("small", "middle", "large")
COST_USD = np.array([0.00001, 0.0005, 0.02])
FIRST_PANEL_Y = 200  # a row of pixels inside the panel of shares, in a picture of the least height


def course(name, chosen, models=MODELS, cost_usd=COST_USD):
    chosen = np.asarray(chosen)
    quality = np.linspace(0.6, 0.9, len(models))[chosen]
    return Course(name, models, chosen, quality - 10 * cost_usd[chosen], cost_usd[chosen])


def picture(chosen, models=MODELS, cost_usd=COST_USD, title="made up"):
    n, K = len(chosen), len(models)
    others = [course(f"always {model}", np.full(n, k), models, cost_usd) for k, model in enumerate(models)]
    others.append(course("uniform random", np.arange(n) % K, models, cost_usd))
    router = course("router", chosen, models, cost_usd)
    oracle = course("oracle", np.zeros(n, dtype=int), models, cost_usd)
    return draw_courses(router, others, oracle=oracle, title=title)


def pixels(png):
    return np.round(255 * imread(BytesIO(png))[..., :3]).astype(int)


def size(png):
    return struct.unpack(">II", png[16:24])


def test_the_picture_is_a_png_1200_pixels_wide():
    png = picture(np.arange(300) % 3)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert size(png) == (1200, 1100)


def test_shares_follow_the_models_that_the_router_chose():
    switching = pixels(picture([0] * 500 + [2] * 500))[FIRST_PANEL_Y]
    early, late = switching[150], switching[780]
    assert list(early) == list(pixels(picture([0] * 1000))[FIRST_PANEL_Y, 150])
    assert list(late) == list(pixels(picture([2] * 1000))[FIRST_PANEL_Y, 780])
    assert list(early) != list(late)


@pytest.mark.parametrize("count", [1, 2, 15])
def test_every_label_lies_inside_the_picture(count):
    models = tuple(f"vendor/a-model-with-a-long-name-2025-12-{k:02d}" for k in range(count))
    png = picture(np.arange(200) % count, models, np.geomspace(1e-5, 1e-1, count))
    image = pixels(png)
    for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert np.all(edge == 255)


def test_more_models_make_a_taller_picture_so_that_each_can_be_named():
    models = tuple(f"model-{k}" for k in range(25))
    width, height = size(picture(np.arange(100) % 25, models, np.geomspace(1e-5, 1e-1, 25)))
    assert width == 1200
    assert height > 1100


@pytest.mark.parametrize("n", [1, 2, 99, 100, 101])
def test_any_number_of_requests_can_be_drawn(n):
    assert size(picture(np.zeros(n, dtype=int))) == (1200, 1100)


def test_models_that_cost_nothing_can_be_drawn_beside_dear_ones():
    assert size(picture(np.arange(50) % 3, cost_usd=np.array([0.0, 0.0001, 0.1]))) == (1200, 1100)
    assert size(picture(np.arange(50) % 3, cost_usd=np.zeros(3))) == (1200, 1100)


def test_a_name_with_dollar_signs_is_text_and_not_a_formula():
    odd = ("$\\frac{", "$x_", "}$")
    assert size(picture(np.arange(50) % 3, odd, title="$\\undefined{")) == (1200, 1100)


def test_a_picture_without_a_fixed_model_is_refused():
    chosen = np.arange(10) % 3
    with pytest.raises(ValueError, match="one fixed model"):
        draw_courses(
            course("router", chosen),
            [course("random", chosen)],
            oracle=course("oracle", chosen),
            title="nothing to compare with",
        )


class References(HTMLParser):
    """Everything on a page that a browser would fetch or run."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def read(page):
    parser = References()
    parser.feed(page)
    return parser


def test_the_page_carries_its_picture_and_refers_to_nothing_outside(tmp_path):
    png = picture(np.arange(30) % 3)
    table = as_html([Row("router", 0.9, 1.0, 0.8, (0.2, 0.3, 0.5))], MODELS)
    one = Section("", table, png, alt="shares", notes=["one", "two"])
    write_page(
        tmp_path / "index.html", title="A demo", sections=[one, Section("Another", table, png, alt="more")]
    )
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    parsed = read(page)
    assert parsed.found == [f"data:image/png;base64,{b64encode(png).decode()}"] * 2
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert "url(" not in page
    assert "@import" not in page
    assert table in page
    assert "<p>one</p>\n<p>two</p>" in page
    assert page.count("<h2>") == 1
    assert "<h2>Another</h2>" in page


def test_titles_and_notes_are_text_on_the_page_and_cannot_become_markup(tmp_path):
    hostile = '<script>alert("$title")</script> & more'
    section = Section(hostile, "<table></table>", b"", alt=hostile, notes=[hostile])
    write_page(tmp_path / "p.html", title=hostile, sections=[section])
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "script" not in read(page).tags
    assert page.count("&lt;script&gt;alert(&quot;$title&quot;)&lt;/script&gt; &amp; more") == 5
