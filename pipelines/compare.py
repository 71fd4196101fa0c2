"""Print the table methods x tasks of a sweep, from its runs in MLflow.

python pipelines/compare.py --suite commonsense
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from beamplatform.cli.exit_codes import main_guard
from beamplatform.cli.options import Parser, split
from beamplatform.errors import UserError

EPILOG = """\
Each method stands in the table as the configuration with the lowest validation loss in its search; test scores take no
part in that choice. Every number is the mean over the seeds with its standard error. Exit
codes: 0 the table was printed, 2 there is nothing to compare or the input is wrong.
"""


def parser() -> argparse.ArgumentParser:
    result = Parser(prog="compare.py", description=(__doc__ or "").splitlines()[0], epilog=EPILOG)
    result.add_argument(
        "--suite",
        required=True,
        metavar="NAME",
        help="suite whose runs are compared: the name of its MLflow experiment",
    )
    result.add_argument("--sweep", metavar="NAME", help="one sweep of the suite (default: the newest)")
    result.add_argument(
        "--methods",
        metavar="A,B",
        help="methods to show, in this order (default: all, in the order of their trials)",
    )
    result.add_argument("--tasks", metavar="A,B", help="tasks to show and to average, in this order (default: all)")
    result.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder)",
    )
    result.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="also write one HTML page, tables as Markdown, LaTeX and CSV, and all pictures to this folder",
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    methods = split("--methods", options.methods) if options.methods is not None else None
    tasks = split("--tasks", options.tasks) if options.tasks is not None else None

    from rich.console import Console

    from beamplatform.report import print_comparison
    from beamplatform.report.files import make_report
    from beamplatform.tracking import Tracker, ui_command

    tracker = Tracker(options.tracking_uri, options.suite)
    runs = tracker.trial_runs(sweep=options.sweep, every_status=True)
    try:
        report = make_report(tracker, runs, methods=methods, tasks=tasks)
    except UserError as error:
        sweeps = list(dict.fromkeys(sweep.name for sweep in tracker.sweeps()))
        shown = options.sweep or sweeps[0]
        raise UserError(
            f"suite {options.suite!r}, sweep {shown!r}: {error} (sweeps, newest first: {', '.join(sweeps)})"
        ) from error
    print_comparison(report.comparison, Console())
    if options.output is not None:
        try:
            paths = report.write(options.output)
        except OSError as error:
            raise UserError(f"--output {options.output}: {error.strerror or error}") from error
        for path in paths:
            print(f"wrote {path}")
    print(f"MLflow UI: {ui_command(tracker.uri)}")
    return 0


if __name__ == "__main__":
    main_guard(main)
