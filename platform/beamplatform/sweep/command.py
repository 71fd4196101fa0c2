"""What `pipelines/sweep.py` does once its input is read: show the plan, or run it in front of the user."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from beamplatform.errors import UserError
from beamplatform.options import has_gpu
from beamplatform.storage import is_uri, join
from beamplatform.suite import Suite
from beamplatform.sweep.output import output_to_file
from beamplatform.sweep.preflight import Plan, plan_sweep
from beamplatform.sweep.progress import SweepProgress, TrialProgress
from beamplatform.sweep.saved import SavedSweep, find_sweep, is_started, only_driver

if TYPE_CHECKING:
    from beamplatform.suite import Preset
    from beamplatform.tracking import Tracker

HOW_TO_GET_REAL = (
    "This is the embedded world: a small model and invented facts, both shipped with the package. The real thing: "
    "--preset paper on a machine or cluster with GPUs, or your own model and data (README, 'Bring your own')."
)


def dry_run(suite: Suite, preset_name: str, preset: Preset, methods: Sequence[str]) -> int:
    """Print every resolved trial with its steps and estimated memory; starts nothing."""
    plan = plan_sweep(suite.name, preset_name, preset, methods)
    console = Console()
    table = Table(title=f"{suite.name}, preset {preset_name}: {len(plan.trials)} trials", title_justify="left")
    table.add_column("trial", no_wrap=True)
    table.add_column("own and searched values", overflow="fold")
    for heading in ("steps", "weights", "adapter, optimizer", "activations", "memory per worker"):
        table.add_column(heading, justify="right")
    for trial, steps, memory in zip(plan.trials, plan.steps, plan.memory, strict=True):
        keys = dict.fromkeys([*preset.space(trial.method).domains, *preset.methods[trial.method]])
        values = " ".join(f"{key}={_short(trial.hyperparameters[key])}" for key in keys)
        parts = (memory.weights, memory.adapter, memory.activations, memory.total)
        table.add_row(trial.name, values or "-", str(steps), *map(_size, parts))
    console.print(table)
    fixed = " ".join(f"{key}={_short(value)}" for key, value in preset.shared.items() if not isinstance(value, dict))
    console.print(f"For all methods that have them: {fixed or 'nothing'}", highlight=False)
    questions = sum(len(records) for records in plan.test.values())
    console.print(
        f"{plan.train_examples} training examples, {questions} test questions for each trial. Nothing was started."
    )
    return 0


def sweep(
    suite: Suite,
    preset_name: str,
    preset: Preset,
    methods: Sequence[str],
    *,
    name: str,
    storage: str,
    tracking_uri: str | None,
    resume: bool = False,
    options: Collection[str] = (),
) -> int:
    """Run a sweep to its table, or what is left of it; returns the exit code: 0, or 1 when trials failed."""
    from beamplatform.tracking import Tracker
    from beamplatform.tracking.store import redact

    console = Console()
    if preset.training.device == "gpu" and not has_gpu():
        raise UserError(
            f"preset {preset_name} needs GPUs and this machine has none; set RAY_ADDRESS to a cluster with GPUs, "
            "choose another --preset, or try --set training.device=cpu (--dry-run works without)"
        )
    storage = storage if is_uri(storage) else str(Path(storage).resolve())
    folder = Path("runs" if is_uri(storage) else storage) / name
    if not resume and is_started(storage, name):
        raise UserError(
            f"--name {name}: {join(storage, name)} exists already; choose another name, or go on with --resume {name}"
        )
    with console.status("Checking the plan"):
        plan = plan_sweep(suite.name, preset_name, preset, methods, options)
    if preset.data.source == "embedded" and preset.model.path == "tiny":
        console.print(HOW_TO_GET_REAL, highlight=False, soft_wrap=True)
    tracker = Tracker(tracking_uri, suite.name)
    tracker.prepare()
    parent = next((known.run_id for known in tracker.sweeps() if known.name == name), None)
    if parent is not None and not resume:
        raise UserError(f"--name {name}: {redact(tracker.uri)} has a sweep of that name already; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / "log.txt"
    console.print(
        f"{'Going on with sweep' if resume else 'Sweep'} {name}: {len(plan.trials)} trials ({', '.join(methods)}), "
        f"{max(plan.steps)} steps each, then {sum(map(len, plan.test.values()))} test questions each. Log: {log_file}",
        highlight=False,
        soft_wrap=True,
    )
    with only_driver(folder, name):
        if not resume:
            values = preset.model_dump(mode="json")
            SavedSweep(name, suite.name, preset_name, values, list(methods), time.time()).save(storage)
        if parent is None:
            parent = _start_parent(tracker, name, suite, preset_name, preset, plan)
        else:
            tracker.reopen(parent)
        return _to_the_end(
            _Session(plan, tracker, parent, name, suite.name, methods, storage, folder, console, resume, options)
        )


def resume(
    suite: str,
    name: str | None,
    *,
    storage: str,
    tracking_uri: str | None,
    concurrent: int | None,
    options: Collection[str] = (),
) -> int:
    """Go on with a sweep as it was started: the one that is named, else the suite's last one."""
    storage = storage if is_uri(storage) else str(Path(storage).resolve())
    saved = find_sweep(storage, suite, name)
    preset = saved.resolved()
    if concurrent is not None:
        preset = preset.model_copy(update={"search": preset.search.model_copy(update={"max_concurrent": concurrent})})
    return sweep(
        Suite(name=saved.suite, presets={saved.preset_name: preset}),
        saved.preset_name,
        preset,
        saved.methods,
        name=saved.name,
        storage=storage,
        tracking_uri=tracking_uri,
        resume=True,
        options=options,
    )


@dataclass(frozen=True)
class _Session:
    """A sweep in front of the user: what it runs, where it records, where it shows.

    Attributes:
        parent: the sweep's own run in `tracker`.
        suite, methods: what the table is of.
        folder: the log and the table.
        options: of the tasks, beside the suite's own.
    """

    plan: Plan
    tracker: Tracker
    parent: str
    name: str
    suite: str
    methods: Sequence[str]
    storage: str
    folder: Path
    console: Console
    resume: bool
    options: Collection[str]

    @property
    def log_file(self) -> Path:
        return self.folder / "log.txt"


def _to_the_end(session: _Session) -> int:
    """Trials, table and the sweep's own run, whatever happens to the trials; returns the exit code."""
    plan, tracker, console, log_file = session.plan, session.tracker, session.console, session.log_file
    try:
        failed = _run(session)
        if len(failed) < len(plan.trials):
            _compare(session)
        tracker.finish(session.parent, "FAILED" if failed else "FINISHED")
    except KeyboardInterrupt:
        _close_runs(session, "KILLED")
        raise
    except BaseException:
        print(f"the sweep stopped on an error; log: {log_file}", file=sys.stderr)
        _close_runs(session, "FAILED")
        raise
    from beamplatform.tracking import ui_command

    console.print(f"Compare runs in the MLflow UI: {ui_command(tracker.uri)}", highlight=False, soft_wrap=True)
    if failed:
        title = f"{len(failed)} of {len(plan.trials)} trials failed (details in {log_file}):"
        console.print(title, style="red", soft_wrap=True)
        for index, reason in failed.items():
            console.print(f"  {plan.trials[index].name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _close_runs(session: _Session, status: Literal["KILLED", "FAILED"]) -> None:
    """End what is open, say so and how to go on; a store that is away must not hide why the sweep ends."""
    try:
        closed = session.tracker.finish_unfinished(session.parent, status)
        print(f"stopped; recorded as {status} in MLflow: {', '.join(closed)}", file=sys.stderr)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"stopped; MLflow could not be told ({first}): its runs stay RUNNING", file=sys.stderr)
    print(f"go on with: python pipelines/sweep.py --suite {session.suite} --resume {session.name}", file=sys.stderr)


def _run(session: _Session) -> dict[int, str]:
    """The trials, with everything the libraries print in the log."""
    from beamplatform.sweep.run import run_sweep

    plan, console = session.plan, session.console
    trials = [TrialProgress(t.name, steps) for t, steps in zip(plan.trials, plan.steps, strict=True)]
    questions = sum(len(records) for records in plan.test.values())
    with output_to_file(session.log_file) as terminal:
        live = Console(file=terminal, force_terminal=console.is_terminal, width=console.width)
        with SweepProgress(trials, live, questions) as progress:
            return run_sweep(
                plan,
                sweep=session.name,
                storage=session.storage,
                tracker=session.tracker,
                parent=session.parent,
                concurrent=plan.max_concurrent,
                progress=progress,
                resume=session.resume,
                options=session.options,
            )


def _start_parent(tracker: Tracker, name: str, suite: Suite, preset_name: str, preset: Preset, plan: Plan) -> str:
    """The sweep's own run: the resolved preset, the environment and what was planned."""
    from beamplatform.tracking import environment, environment_tags

    found = environment()
    parameters = {"suite": suite.name, "preset": preset_name, "trials": len(plan.trials)}
    tags = {"preset": preset_name, "data.fingerprint": plan.fingerprint, **environment_tags(found)}
    parent = tracker.start_sweep(name, parameters, tags)
    tracker.log_json(parent, found, "environment.json")
    tracker.log_json(parent, preset.model_dump(mode="json"), "preset.json")
    return parent


def _compare(session: _Session) -> None:
    """The tables on the terminal; all of the report in the sweep's folder and with its own run."""
    from mlflow.exceptions import MlflowException

    from beamplatform.report import print_comparison
    from beamplatform.report.files import PAGE, make_report
    from beamplatform.report.registry import register_best

    tracker, folder = session.tracker, session.folder / "comparison"
    runs = tracker.trial_runs(sweep=session.name, every_status=True)
    finished = {run.method for run in runs if run.status == "FINISHED"}
    methods = [method for method in session.methods if method in finished]
    report = make_report(tracker, runs, methods=methods)
    print_comparison(report.comparison, session.console)
    report.write(folder)
    tracker.log_folder(session.parent, folder, "comparison")
    try:
        registered = register_best(report)
    except MlflowException as error:  # a store without a registry keeps the sweep all the same
        first = str(error).splitlines()[0]
        session.console.print(f"The best adapter could not be registered: {first}", style="yellow", soft_wrap=True)
        registered = None
    if registered is not None:
        session.console.print(f"Registered in MLflow: {registered}", highlight=False, soft_wrap=True)
    session.console.print(f"Tables, pictures and one page: {folder / PAGE}", highlight=False, soft_wrap=True)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.0f} MiB"
