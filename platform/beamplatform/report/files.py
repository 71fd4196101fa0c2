"""The comparison as files: Markdown, CSV and the picture."""

from __future__ import annotations

from pathlib import Path

from beamplatform.report.comparison import Comparison
from beamplatform.report.labels import CHANCE
from beamplatform.report.picture import save_picture
from beamplatform.report.render import to_csv, to_markdown


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write comparison.md and .csv, and .png and .svg where tasks were scored; returns their paths.

    `folder` is made where it is missing.

    Raises:
        OSError: the folder cannot be written to.
    """
    texts = {folder / "comparison.md": to_markdown(comparison), folder / "comparison.csv": to_csv(comparison)}
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    pictures = save_picture(comparison, folder / "comparison", chance=CHANCE) if comparison.tasks else []
    return [*texts, *pictures]
