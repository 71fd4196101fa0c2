"""Writes the report of a sweep, from MLflow alone: tables, pictures and one page."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from beamplatform.metrics import TRAIN_LOSS
from beamplatform.report.answers import OURS, with_differences
from beamplatform.report.beam import History, draw_beam
from beamplatform.report.comparison import Comparison, compare
from beamplatform.report.costs import draw_costs
from beamplatform.report.curves import draw_curves
from beamplatform.report.labels import CHANCE, method_label
from beamplatform.report.page import to_html
from beamplatform.report.picture import draw
from beamplatform.report.render import to_csv, to_latex, to_markdown
from beamplatform.report.searched import draw_effects, draw_parallel
from beamplatform.report.style import save

if TYPE_CHECKING:
    from beamplatform.tracking import Tracker
    from beamplatform.tracking.runs import TrialRecord

PAGE = "comparison.html"


@dataclass(frozen=True)
class Report:
    """A comparison, with the trials and the MLflow store that its pictures are drawn from."""

    comparison: Comparison
    runs: Sequence[TrialRecord]
    tracker: Tracker

    def write(self, folder: Path) -> list[Path]:
        """Write comparison.html, .md, .tex and .csv, and a .png and .svg of every picture; return their paths.

        `folder` is created if it does not exist.

        Raises:
            OSError: the folder cannot be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        comparison, history = self.comparison, self._beam()
        methods = [row.method for row in comparison.rows]
        tried = self._tried()
        drawn = [
            ("Accuracy", "comparison", draw(comparison, chance=CHANCE) if comparison.tasks else None),
            ("Cost", "costs", draw_costs(comparison)),
            ("Training loss", "curves", draw_curves(comparison, self._losses())),
            ("Beam", "beam", draw_beam(history)),
            ("Searched hyperparameters", "effects", draw_effects(tried, methods)),
            *((f"Search of {method_label(m)}", f"search-{m}", draw_parallel(tried, m)) for m in methods),
        ]
        pictures = []
        paths: list[Path] = []
        for heading, name, figure in drawn:
            if figure is not None:
                png, svg = save(figure, folder / name)
                pictures.append((heading, svg))
                paths += [png, svg]
        texts = {
            folder / PAGE: to_html(comparison, pictures, history=history, origin=self._origin()),
            folder / "comparison.md": to_markdown(comparison),
            folder / "comparison.tex": to_latex(comparison),
            folder / "comparison.csv": to_csv(comparison),
        }
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        return [*texts, *paths]

    def _tried(self) -> list[TrialRecord]:
        """Return the trials that show the effect of a hyperparameter.

        These are a method's search trials or, if it had no search, all its trials.
        """
        chosen = {run_id for row in self.comparison.rows for run_id in row.run_ids}
        context = next((run.context for run in self.runs if run.run_id in chosen), "")
        current = [run for run in self.runs if run.context == context]
        searched = {run.method for run in current if run.role == "search"}
        return [run for run in current if run.role == "search" or run.method not in searched]

    def _losses(self) -> dict[str, list[list[tuple[int, float]]]]:
        rows = self.comparison.rows
        return {row.method: [self.tracker.history(run, TRAIN_LOSS) for run in row.run_ids] for row in rows}

    def _beam(self) -> History:
        """Return the beam steps of BeamLoRA's first seed; empty if it takes no part or its export was not kept."""
        row = self.comparison.row(OURS)
        if row is None:
            return []
        with tempfile.TemporaryDirectory() as name:
            file = self.tracker.download(row.run_ids[0], "export/beam.json", Path(name))
            return json.loads(file.read_text(encoding="utf-8")) if file is not None else []

    def _origin(self) -> dict[str, str]:
        sweep = next((s for s in self.tracker.sweeps() if s.name == self.comparison.sweep), None)
        tags = sweep.tags if sweep is not None else {}
        commit = tags.get("mlflow.source.git.commit", "")
        changed = " (with changes)" if tags.get("git.dirty") == "true" else ""
        return {
            "suite": self.comparison.suite,
            "sweep": self.comparison.sweep,
            "command line": tags.get("command_line", ""),
            "commit": commit + changed,
            "data": tags.get("data.fingerprint", ""),
            "hardware": tags.get("hardware", ""),
            "Python": tags.get("python", ""),
            "model": self.comparison.rows[0].model,
        }


def make_report(
    tracker: Tracker,
    runs: Sequence[TrialRecord],
    *,
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> Report:
    """Compare the methods of one sweep, and test the differences between them.

    Args:
        runs: the sweep's trials, of every status.
        methods, tasks: which rows and columns, and in which order; see `compare`.

    Raises:
        UserError: there is nothing to compare; see `compare`.
    """
    sweep_name = runs[-1].sweep if runs else ""
    context = next((sweep.tags.get("context") for sweep in tracker.sweeps() if sweep.name == sweep_name), None)
    comparison = compare(runs, suite=tracker.experiment, methods=methods, tasks=tasks, context=context)
    return Report(with_differences(comparison, tracker), runs, tracker)
