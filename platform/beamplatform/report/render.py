"""A comparison's tables on a terminal and as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from beamplatform.report.comparison import AVERAGE, Comparison
from beamplatform.report.sheets import Sheet, SheetRow, cell_of, remarks, scores_sheet, sheets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_comparison(comparison: Comparison, console: Console) -> None:
    """All tables on a console; the scores upright, tasks as rows, where the terminal is too narrow for them."""
    from rich.console import Console
    from rich.measure import Measurement

    roomy = console.options.update(width=10_000)
    scores = scores_sheet(comparison)
    needed = Measurement.get(console, roomy, _table(scores)).maximum
    if not console.is_terminal and needed > console.width:  # a file or a pipe has no width to keep to
        console = Console(file=console.file, width=needed)
    for sheet in sheets(comparison):
        narrow = sheet == scores and needed > console.width
        console.print(_table(_turned(sheet) if narrow else sheet, wraps=sheet != scores))
    for sentence in remarks(comparison):
        style = "dim" if sentence.startswith("left out") else "yellow"
        console.print(sentence, style=style, markup=False, highlight=False)


def to_markdown(comparison: Comparison) -> str:
    """All tables as GitHub's Markdown; the best of each column is bold, the second in italics."""
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
    r"""All tables for a paper that loads booktabs; the best of each column is bold, the second underlined."""
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
    """One line per method and task, accuracies in 0..1 with all their digits."""
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
    """Tasks as rows and methods as columns, which eight tasks need on 80 columns."""
    head, *body = zip(*[[SheetRow(name) for name in sheet.columns], *sheet.rows], strict=True)
    columns = ["task", *(entry.text for entry in head[1:])]
    return Sheet(sheet.title, columns, [list(row) for row in body], sheet.legend)


def _rich(entry: SheetRow) -> str:
    """Marked by sign and by style: colours are lost in files and on some terminals. Signs stand in one column."""
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
