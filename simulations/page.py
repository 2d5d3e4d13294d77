"""A report as one HTML file that refers to nothing outside itself: titles, tables, pictures, notes."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Final


@dataclass(frozen=True, slots=True)
class Section:
    """table_html is put in as it is; all else is text. alt: what the picture shows, for those who do not see it."""

    title: str
    table_html: str
    png: bytes
    alt: str
    notes: Sequence[str] = ()


def write_page(path: Path, *, title: str, sections: Sequence[Section]) -> None:
    """One page. A single section needs no title of its own."""
    page = _PAGE.substitute(title=escape(title), sections="\n".join(map(_html, sections)))
    path.write_text(page, encoding="utf-8")


def _html(section: Section) -> str:
    return _SECTION.substitute(
        heading=f"<h2>{escape(section.title)}</h2>\n" if section.title else "",
        picture=b64encode(section.png).decode(),
        alt=escape(section.alt, quote=True),
        table=section.table_html,
        notes="\n".join(f"<p>{escape(note)}</p>" for note in section.notes),
    )


_SECTION: Final = Template("""<section>
$heading<div class="table">$table</div>
<img alt="$alt"
     src="data:image/png;base64,$picture">
$notes
</section>""")

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1a1a1a; --faint: #5f6368; --rule: #dadce0; --paper: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #9aa0a6; --rule: #3c4043; --paper: #17181a; }
}
body { margin: 3rem auto; max-width: 75rem; padding: 0 1.25rem; background: var(--paper); color: var(--ink);
       font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.2rem; margin: 3.5rem 0 1rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .4rem 1.2rem .4rem 0; text-align: right; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--faint); }
th:first-child, td:first-child { text-align: left; }
tbody tr:first-child { font-weight: 600; }
img { display: block; max-width: 100%; height: auto; margin: 2rem 0; border-radius: .5rem; }
p { max-width: 48rem; color: var(--faint); margin: .5rem 0; }
</style>
</head>
<body>
<h1>$title</h1>
$sections
</body>
</html>
""")
