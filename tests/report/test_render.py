from __future__ import annotations

import csv
import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from rich.console import Console

from beamplatform.report import compare, print_comparison, to_csv, to_markdown
from beamplatform.report.comparison import Comparison
from beamplatform.report.picture import draw
from beamplatform.report.style import MARKERS, PALETTE, save
from beamplatform.tracking.runs import TrialRecord

TASKS = (
    "boolq",
    "piqa",
    "social_i_qa",
    "hellaswag",
    "winogrande",
    "ARC-Easy",
    "ARC-Challenge",
    "openbookqa",
)
METHODS = ("beamlora", "lora", "dora", "adalora", "pissa", "milora", "relora", "increlora", "full")


def comparison_of(methods: int, tasks: int, seeds: int = 2) -> Comparison:
    """Accuracies that fall by 0.05 from method to method and differ by 0.02 between two seeds."""
    runs = [
        TrialRecord(
            run_id=f"{method}{seed}",
            name=f"{method}-seed{seed}",
            method=method,
            seed=seed,
            params={},
            metrics={
                f"eval/{task}": 0.8 - 0.05 * place + 0.01 * column + 0.02 * seed
                for column, task in enumerate(TASKS[:tasks])
            },
            status="FINISHED",
            sweep="2026-01-01",
            configuration="c",
            preset="tiny",
        )
        for place, method in enumerate(METHODS[:methods])
        for seed in range(seeds)
    ]
    return compare(runs, suite="commonsense")


def printed(comparison: Comparison, *, width: int, terminal: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    print_comparison(comparison, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_table_method_by_task() -> None:
    lines = printed(comparison_of(2, 2), width=100, terminal=True)
    assert lines[0].strip() == "Accuracy (%): commonsense, preset tiny, 2026-01-01"
    header = next(line for line in lines if "BoolQ" in line)
    assert header.split() == ["method", "BoolQ", "PIQA", "average", "seeds"]
    first = next(line for line in lines if "BeamLoRA" in line)
    assert first.split() == ["BeamLoRA", "81.0", "±1.0*", "82.0", "±1.0*", "81.5", "±1.0*", "2"]
    second = next(line for line in lines if line.strip().startswith("LoRA"))
    assert second.split() == ["LoRA", "76.0", "±1.0°", "77.0", "±1.0°", "76.5", "±1.0°", "2"]


def test_narrow_terminal_gets_tasks_as_rows_and_loses_nothing() -> None:
    lines = printed(comparison_of(4, 8), width=80, terminal=True)
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    first = next(line for line in lines if "BoolQ" in line)
    assert first.split() == ["BoolQ", "81.0", "±1.0*", "76.0", "±1.0°", "71.0", "±1.0", "66.0", "±1.0"]
    assert any(line.split()[:1] == ["average"] for line in lines if line.strip())


def test_a_file_gets_the_whole_table_however_wide() -> None:
    lines = printed(comparison_of(4, 8), width=80, terminal=False)
    header = next(line for line in lines if "BoolQ" in line)
    assert header.split()[0] == "method" and header.split()[-1] == "seeds" and "…" not in "".join(lines)


def test_markdown_marks_the_best_in_bold() -> None:
    text = to_markdown(comparison_of(2, 1))
    assert "| method | BoolQ | average | seeds |\n| --- | ---: | ---: | ---: |\n" in text
    assert "| BeamLoRA | **81.0 ±1.0** | **81.0 ±1.0** | 2 |\n" in text
    assert "| LoRA | *76.0 ±1.0* | *76.0 ±1.0* | 2 |\n" in text


def test_a_note_on_a_task_stands_below_the_table() -> None:
    noted = replace(comparison_of(2, 2), notes={"boolq": "variant: rows are missing"})
    assert any("BoolQ †" in line for line in printed(noted, width=200, terminal=True))
    for text in ("\n".join(printed(noted, width=200, terminal=True)), to_markdown(noted)):
        assert "BoolQ †: variant: rows are missing" in text
    assert "†" not in to_markdown(comparison_of(2, 2))


def test_csv_holds_every_digit() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison_of(2, 2)))))
    assert [(row["method"], row["task"]) for row in rows] == [
        (method, task) for method in ("beamlora", "lora") for task in ("boolq", "piqa", "average")
    ]
    assert float(rows[0]["accuracy"]) == pytest.approx(0.81, abs=1e-15)
    assert float(rows[0]["standard_error"]) == pytest.approx(0.01)
    assert [row["best"] for row in rows] == ["true"] * 3 + ["false"] * 3
    assert rows[0]["seeds"] == "2" and rows[0]["sweep"] == "2026-01-01"


def drawn_ticks(axes: Axes) -> list[Text]:
    """The labels of the ticks inside the axes; matplotlib keeps further ones just outside."""
    return [
        tick.label1
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ]


def titles(axes: Axes) -> list[Text]:
    return [
        text for text in axes.get_children() if isinstance(text, Text) and text.get_text() == axes.get_title("left")
    ]


@pytest.mark.parametrize(("methods", "tasks", "seeds"), [(1, 1, 1), (4, 8, 2), (9, 8, 2)])
def test_no_words_overlap_in_the_picture(methods: int, tasks: int, seeds: int) -> None:
    figure = draw(comparison_of(methods, tasks, seeds), chance={"boolq": 0.5})
    figure.canvas.draw()
    texts = [
        text for axes in figure.axes for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label, *drawn_ticks(axes))
    ]
    texts += [*figure.texts, *(text for axes in figure.axes for text in titles(axes))]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    assert len(boxes) > methods + tasks
    overlapping = [
        (one, other)
        for index, (one, box) in enumerate(boxes)
        for other, other_box in boxes[index + 1 :]
        if box.overlaps(other_box)
    ]
    assert overlapping == []
    width, height = figure.canvas.get_width_height()
    outside = [text for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    assert outside == []


def test_picture_shows_means_and_chance_where_they_are(tmp_path: Path) -> None:
    figure = draw(comparison_of(2, 2), chance={"boolq": 0.5})
    by_task = figure.axes[0]
    assert by_task.get_ylabel() == "accuracy (%)"
    lines = [(line.get_linestyle(), list(np.asarray(line.get_ydata()))) for line in by_task.lines]
    means = [heights for style, heights in lines if style == "None"]
    assert means == [pytest.approx([81.0, 82.0]), pytest.approx([76.0, 77.0])]
    assert [heights for style, heights in lines if style == "--"] == [[50.0, 50.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["BeamLoRA", "LoRA", "chance"]
    png, svg = save(figure, tmp_path / "picture")
    assert png.read_bytes().startswith(b"\x89PNG") and "<svg" in svg.read_text()


def test_colours_differ_in_grey_as_well() -> None:
    """Neighbours differ in luminance (Rec. 709), and every method has a marker of its own."""

    def grey(color: str) -> float:
        red, green, blue = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert all(abs(grey(one) - grey(other)) > 0.07 for one, other in itertools.pairwise(PALETTE))
    assert len(set(MARKERS)) == len(MARKERS) >= len(METHODS)
