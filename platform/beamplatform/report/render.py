"""A comparison's tables on a terminal and as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from beamplatform.report.comparison import AVERAGE, Comparison
from beamplatform.report.sheets import Sheet, SheetField, cell_of, remarks, scores_sheet, sheets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print all tables and remarks.

    If the terminal is too narrow for the table of scores, tasks become its rows and methods its columns.
    """
    from rich.console import Console
    from rich.measure import Measurement

    unlimited = console.options.update(width=10_000)
    scores = scores_sheet(comparison)
    needed = Measurement.get(console, unlimited, _table(scores)).maximum
    if not console.is_terminal and needed > console.width:  # files and pipes have no width limit
        console = Console(file=console.file, width=needed)
    for sheet in sheets(comparison):
        narrow = sheet == scores and needed > console.width
        console.print(_table(_turned(sheet) if narrow else sheet, wraps=sheet != scores))
    for sentence in remarks(comparison):
        style = "dim" if sentence.startswith("left out") else "yellow"
        console.print(sentence, style=style, markup=False, highlight=False)


def to_markdown(comparison: Comparison) -> str:
    """Return all tables as GitHub's Markdown; the best of each column is bold, the second in italics."""
    face = {"best": "**{}**", "second": "*{}*", "": "{}"}
    lines: list[str] = []
    for sheet in sheets(comparison):
        rules = ["---" if index in sheet.left else "---:" for index in range(len(sheet.columns))]
        rows = [
            [face[entry.emphasis].format(_escape(entry.text)) + (" ~" if "~" in entry.mark else "") for entry in row]
            for row in sheet.rows
        ]
        lines += [f"### {sheet.title}", ""]
        lines += ["| " + " | ".join(cells) + " |" for cells in (sheet.columns, rules, *rows)]
        legend = sheet.legend.replace("* best", "**bold**: best").replace("° second", "*italics*: second")
        lines += ["", legend, ""] if legend else [""]
    lines += [f"- {_escape(sentence)}" for sentence in remarks(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def to_latex(comparison: Comparison) -> str:
    r"""Return all tables as LaTeX with booktabs; the best of each column is bold, the second underlined."""
    face = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
    lines = [r"% needs \usepackage{booktabs}"]
    for sheet in sheets(comparison):
        alignment = "".join("l" if index in sheet.left else "r" for index in range(len(sheet.columns)))
        legend = sheet.legend.replace("* best", "bold: best").replace("° second", "underlined: second")
        lines += [r"\begin{table}", r"  \centering", rf"  \caption{{{_latex(f'{sheet.title}. {legend}')}}}"]
        lines += [rf"  \begin{{tabular}}{{{alignment}}}", r"    \toprule"]
        lines += ["    " + " & ".join(map(_latex, sheet.columns)) + r" \\", r"    \midrule"]
        for row in sheet.rows:
            lines.append("    " + " & ".join(face[e.emphasis].format(_latex(e.text)) for e in row) + r" \\")
        lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""]
    lines += [f"% {sentence}" for sentence in remarks(comparison)]
    return "\n".join(lines).rstrip() + "\n"


_COLUMNS = (
    "suite", "sweep", "preset", "method", "configuration", "task", "accuracy", "standard_error", "seeds", "best",
    "published", "trained_parameters", "seconds", "peak_memory_bytes",
)  # fmt: skip


def to_csv(comparison: Comparison) -> str:
    """Return CSV with one line per method and task; accuracies are in 0..1 and not rounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in comparison.rows:
        for task in (*comparison.tasks, AVERAGE):
            cell = cell_of(row, task)
            scores = [None, None] if cell is None else [cell.mean, cell.standard_error]
            best = str(cell is not None and cell.best).lower()
            values = [
                comparison.suite, comparison.sweep, comparison.preset, row.method, row.configuration, task, *scores,
                len(row.seeds), best, row.published.get(task), row.parameters, row.seconds, row.memory,
            ]  # fmt: skip
            writer.writerow(["" if v is None else repr(v) if isinstance(v, float) else v for v in values])
    return text.getvalue()


def _table(sheet: Sheet, *, wraps: bool = False) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=sheet.title,
        caption=sheet.legend,
        box=box.SIMPLE_HEAD,
        title_style="bold",
        title_justify="left",
        caption_style="dim",
        caption_justify="left",
    )
    for index, name in enumerate(sheet.columns):
        side = "left" if index in sheet.left else "right"
        table.add_column(name, justify=side, no_wrap=not wraps or index == 0)  # type: ignore[arg-type]
    for row in sheet.rows:
        table.add_row(*map(_rich, row))
    return table


def _turned(sheet: Sheet) -> Sheet:
    """Return the table with tasks as rows and methods as columns: eight tasks side by side exceed 80 characters."""
    head, *body = zip(*[[SheetField(name) for name in sheet.columns], *sheet.rows], strict=True)
    columns = ["task", *(entry.text for entry in head[1:])]
    return Sheet(sheet.title, columns, [list(row) for row in body], sheet.legend)


def _rich(entry: SheetField) -> str:
    """Return a field as rich's markup, with a sign beside the colour because files and some terminals lose colours.

    A number without a sign gets a space instead, so that all digits are aligned.
    """
    from rich.markup import escape

    text = escape(entry.text) + (entry.mark or (" " if entry.text[:1].isdigit() else ""))
    return f"[bold green]{text}[/]" if entry.emphasis == "best" else text


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _latex(text: str) -> str:
    text = re.sub(r"([%&_#$])", r"\\\1", text)
    signs: Sequence[tuple[str, str]] = (("±", r"$\pm$"), ("†", r"$\dagger$"), ("~", r"$\sim$"), ("->", r"$\to$"))
    for sign, written in signs:
        text = text.replace(sign, written)
    return re.sub(r"(?<![\w$])<", "$<$", text)
