"""A comparison as one self-contained HTML page: tables, pictures and the origin of the numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from beamplatform.report.beam import History, replacements
from beamplatform.report.comparison import Comparison
from beamplatform.report.sheets import remarks, sheets, title


def to_html(
    comparison: Comparison,
    pictures: Sequence[tuple[str, Path]],
    *,
    history: History = (),
    origin: Mapping[str, str] | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        pictures: (heading, path of an SVG file) of each picture.
        history: the beam steps of one run (`report.beam`).
        origin: facts about the sweep, such as commit, versions and command line.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("beamplatform.report"), autoescape=True)
    return environment.get_template("page.html").render(
        title=title(comparison).removeprefix("Accuracy (%): "),
        sheets=sheets(comparison),
        remarks=remarks(comparison),
        pictures=[(name, _svg(path, number)) for number, (name, path) in enumerate(pictures)],
        replacements=replacements(history),
        origin=[(name, value) for name, value in (origin or {}).items() if value],
    )


def _svg(path: Path, number: int) -> str:
    """Return the <svg> element of a file, with ids that are unique among the page's pictures."""
    text = path.read_text(encoding="utf-8")
    element = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    element = re.sub(r'\bid="', f'id="p{number}-', element)
    element = re.sub(r'(xlink:href|href)="#', rf'\1="#p{number}-', element)
    return re.sub(r"url\(#", f"url(#p{number}-", element)
