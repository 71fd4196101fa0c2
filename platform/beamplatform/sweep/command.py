"""What `pipelines/sweep.py` does after reading its input: show a plan, or run it and report to the user."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from beamplatform.errors import UserError, first_line
from beamplatform.hardware import has_gpu
from beamplatform.io.redirect import output_to_file
from beamplatform.io.storage import DEFAULT_STORAGE, is_uri, join
from beamplatform.io.storage_check import check_free, check_writable
from beamplatform.sweep.cluster.autoscaler import autoscaler_limits
from beamplatform.sweep.cluster.health_check import check_cluster
from beamplatform.sweep.cluster.machine_check import check_machine
from beamplatform.sweep.plan.describe import announced, changes, left_out, print_plan
from beamplatform.sweep.plan.ledger import LedgerEntry, load_ledger
from beamplatform.sweep.plan.memory_check import check_memory, room_here
from beamplatform.sweep.plan.plan import Plan, plan_sweep
from beamplatform.sweep.plan.saved_sweep import SavedSweep, find_sweep, only_driver, saved_sweep, storage_of
from beamplatform.sweep.progress import SweepProgress

if TYPE_CHECKING:
    from beamplatform.config.suite import Preset
    from beamplatform.sweep.run import Result
    from beamplatform.tracking import Tracker

HOW_TO_GET_REAL = (
    "This is the embedded world: a small model and invented facts, both shipped with the package. The real thing: "
    "--preset paper on a machine or cluster with GPUs, or your own model and data (README, 'Bring your own')."
)


@dataclass(frozen=True)
class Request:
    """A sweep that the user requests.

    Attributes:
        name: the name of the sweep and of its folder in `storage`.
        saved: the saved sweep to go on with (`--resume`, `--extend`), if any.
        options: task options beside the suite's own.
        extended: whether the saved sweep is extended rather than only resumed.
        typed: command-line options, which are saved so that an extension need not repeat them.
        probe: whether to time a few steps first.
    """

    suite: str
    preset_name: str
    preset: Preset
    methods: Sequence[str]
    name: str
    storage: str
    tracking_uri: str | None
    saved: SavedSweep | None = None
    options: Collection[str] = ()
    extended: bool = False
    typed: dict[str, Any] = field(default_factory=dict)
    probe: bool = True


def dry_run(request: Request) -> int:
    """Print what would run and its estimated memory, and start nothing."""
    console = Console()
    plan = plan_sweep(request.suite, request.preset_name, request.preset, request.methods)
    if request.saved is not None:
        entries = load_ledger(storage_of(request.storage), request.name)
        for line in changes(plan, request.saved, entries, extended=request.extended):
            console.print(line, highlight=False, soft_wrap=True)
    print_plan(plan, console)
    return 0


def sweep(request: Request) -> int:
    """Run a sweep, or the rest of one, and print its table; return the exit code: 0, or 1 if trials failed."""
    from beamplatform.tracking import Tracker
    from beamplatform.tracking.store import redact, sqlite_path

    console, preset, name = Console(), request.preset, request.name
    if preset.training.device == "gpu" and not has_gpu():
        raise UserError(
            f"preset {request.preset_name} needs GPUs and this machine has none; set RAY_ADDRESS to a cluster with "
            "GPUs, choose another --preset, or try --set training.device=cpu (--dry-run works without)"
        )
    check_cluster(preset.training)
    check_machine()
    _refuse_own_folder(request.storage)
    storage = storage_of(request.storage)
    local_storage = DEFAULT_STORAGE if is_uri(storage) else storage
    for location in dict.fromkeys((storage, local_storage)):
        check_writable("--storage", location)
    folder = Path(local_storage) / name
    tracker = Tracker(request.tracking_uri, request.suite)
    if (database := sqlite_path(tracker.uri)) is not None:
        check_free(f"the tracking store {database}", database.parent)
    if request.saved is None:
        _refuse_taken_name(storage, name, request.suite)
    with console.status("Checking the plan"):
        plan = plan_sweep(request.suite, request.preset_name, preset, request.methods, request.options)
        check_memory(plan, room_here(preset.training))
    for line in left_out(plan):
        console.print(line, highlight=False, soft_wrap=True)
    if preset.data.source == "embedded" and preset.model.path == "tiny":
        console.print(HOW_TO_GET_REAL, highlight=False, soft_wrap=True)
    tracker.prepare()
    parent = next((earlier.run_id for earlier in tracker.sweeps() if earlier.name == name), None)
    if parent is not None and request.saved is None:
        raise UserError(f"--name {name}: {redact(tracker.uri)} has a sweep of that name already; choose another name")
    with _writable(storage):
        folder.mkdir(parents=True, exist_ok=True)
    with only_driver(folder, name):
        earlier = load_ledger(storage, name) if request.saved is not None else []
        console.print(_headline(request, plan, folder / "log.txt"), highlight=False, soft_wrap=True)
        for line in plan.quality.lines(preset.data):
            console.print(line, style="yellow", highlight=False, soft_wrap=True)
        if request.saved is not None:
            for line in changes(plan, request.saved, earlier, extended=request.extended):
                console.print(line, highlight=False, soft_wrap=True)
        started = request.saved.started if request.saved is not None else time.time()
        values = preset.model_dump(mode="json")
        with _writable(storage):
            SavedSweep(
                name, request.suite, request.preset_name, values, plan.methods, started, plan.content, request.typed
            ).save(storage)
        parent = _open_parent(tracker, parent, request, plan)
        return _to_the_end(_Session(request, plan, earlier, tracker, parent, storage, folder, console))


def resume(
    suite: str,
    name: str | None,
    *,
    storage: str,
    tracking_uri: str | None,
    concurrent: int | None,
    options: Collection[str] = (),
) -> int:
    """Resume the sweep `name`, or else the suite's last one, with the settings it was started with."""
    saved = find_sweep(storage_of(storage), suite, name)
    preset = saved.resolved()
    if concurrent is not None:
        preset = preset.model_copy(update={"search": preset.search.model_copy(update={"max_concurrent": concurrent})})
    return sweep(
        Request(
            saved.suite,
            saved.preset_name,
            preset,
            saved.methods,
            name=saved.name,
            storage=storage,
            tracking_uri=tracking_uri,
            saved=saved,
            options=options,
            typed=saved.options,
        )
    )


@contextlib.contextmanager
def _writable(storage: str) -> Iterator[None]:
    """Turn an error of the sweep's first writes to `storage` into a UserError."""
    try:
        yield
    except Exception as error:  # a disk or an object store may raise any error
        raise UserError(f"--storage {storage}: cannot be written to ({first_line(error)})") from error


def _refuse_own_folder(storage: str) -> None:
    """Refuse the default storage folder if nodes may join the cluster later.

    Such nodes cannot be asked now whether they see the folder. But the default folder is surely on the head alone.
    """
    if storage == DEFAULT_STORAGE and autoscaler_limits().workers:
        raise UserError(
            f"--storage {storage}: the other nodes of this cluster do not see this folder of its head; give a URI such "
            "as s3://BUCKET/sweeps or a folder that all nodes share, here or as BEAMLORA_STORAGE"
        )


def _refuse_taken_name(storage: str, name: str, suite: str) -> None:
    taken = saved_sweep(storage, name)
    if taken is None:
        return
    location = join(storage, name)
    if taken.suite != suite:
        raise UserError(
            f"--name {name}: {location} is a sweep of the suite {taken.suite}, not of {suite}; choose another name"
        )
    raise UserError(
        f"--name {name}: {location} exists already; choose another name, go on with --resume {name}, or add to it with "
        f"--extend {name}"
    )


def _headline(request: Request, plan: Plan, log_file: Path) -> str:
    start = "Going on with sweep" if request.saved is not None else "Sweep"
    steps = max(plan.steps(method) for method in plan.methods)
    return (
        f"{start} {request.name}: {announced(plan)} ({', '.join(plan.methods)}), {steps} steps each; "
        f"{plan.questions} test questions for each final trial. Log: {log_file}"
    )


@dataclass(frozen=True)
class _Session:
    """A sweep that runs and reports to the user.

    Attributes:
        earlier: the ledger's entries at the start of the session.
        parent: id of the sweep's own run in `tracker`.
        folder: local folder for the log and the table.
    """

    request: Request
    plan: Plan
    earlier: Sequence[LedgerEntry]
    tracker: Tracker
    parent: str
    storage: str
    folder: Path
    console: Console

    @property
    def log_file(self) -> Path:
        return self.folder / "log.txt"


def _to_the_end(session: _Session) -> int:
    """Run the trials, print the table and end the sweep's own run, whatever happens; return the exit code."""
    tracker, console, log_file = session.tracker, session.console, session.log_file
    try:
        result = _run(session)
        entries, failed = result.entries, result.failed
        if any(e.role == "final" and e.state == "trained" and i not in failed for i, e in enumerate(entries)):
            _compare(session)
        tracker.finish(session.parent, "FAILED" if failed else "FINISHED")
    except KeyboardInterrupt:
        _close_runs(session, "KILLED")
        raise
    except UserError:
        _close_runs(session, "FAILED")
        raise
    except BaseException:
        print(f"the sweep stopped on an error; log: {log_file}", file=sys.stderr)
        with contextlib.suppress(OSError), log_file.open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        _close_runs(session, "FAILED")
        raise
    from beamplatform.tracking import ui_command

    console.print(f"Compare runs in the MLflow UI: {ui_command(tracker.uri)}", highlight=False, soft_wrap=True)
    if failed:
        how_many = f"all {len(entries)}" if len(failed) == len(entries) else f"{len(failed)} of {len(entries)}"
        console.print(f"{how_many} trials failed (details in {log_file}):", style="red", soft_wrap=True)
        for index, reason in failed.items():
            console.print(f"  {entries[index].trial.name}: {reason}", markup=False, highlight=False, soft_wrap=True)
        resume_command = _how_to_resume(session.request)
        console.print(f"Try those again with: {resume_command}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _how_to_resume(request: Request) -> str:
    return f"python pipelines/sweep.py --suite {request.suite} --resume {request.name}"


def _close_runs(session: _Session, status: Literal["KILLED", "FAILED"]) -> None:
    """End all open runs, and tell the user about it and how to go on.

    A store that is away must not hide why the sweep ends.
    """
    try:
        closed = session.tracker.finish_unfinished(session.parent, status)
        print(f"stopped; recorded as {status} in MLflow: {', '.join(closed)}", file=sys.stderr)
    except Exception as error:
        print(f"stopped; MLflow could not be told ({first_line(error)}): its runs stay RUNNING", file=sys.stderr)
    print(f"go on with: {_how_to_resume(session.request)}", file=sys.stderr)


def _run(session: _Session) -> Result:
    """Run the trials. Everything that libraries print goes to the log."""
    from beamplatform.sweep.run import run_sweep

    plan, console = session.plan, session.console
    with output_to_file(session.log_file) as terminal:
        live = Console(file=terminal, force_terminal=console.is_terminal, width=console.width)
        with SweepProgress([], live, plan.expected) as progress:
            return run_sweep(
                plan,
                sweep=session.request.name,
                storage=session.storage,
                tracker=session.tracker,
                parent=session.parent,
                progress=progress,
                earlier=session.earlier,
                again=not session.request.extended,
                concurrent=plan.search.max_concurrent,
                probe=session.request.probe and not session.earlier,
                options=session.request.options,
            )


def _open_parent(tracker: Tracker, run_id: str | None, request: Request, plan: Plan) -> str:
    """Open the sweep's own run and record the preset, the environment and the plan; return the run's id."""
    from beamplatform.tracking import environment, environment_tags

    facts = environment()
    tags = {
        "preset": plan.preset_name,
        "data.fingerprint": plan.identity.records,
        "code": plan.identity.code,
        "context": plan.context,
        **environment_tags(facts),
    }
    search = plan.search.model_dump(mode="json", include={"algorithm", "trials", "budget", "seed", "trial_seed"})
    parameters = {"suite": plan.suite, "preset": plan.preset_name, "trials": plan.expected, "search": search}
    if run_id is None:
        parent = tracker.start_sweep(request.name, parameters, tags)
    else:
        parent = run_id
        tracker.reopen(parent)
        tracker.set_tags(parent, tags)  # parameters cannot change; preset.json holds the current values
    tracker.log_json(parent, facts, "environment.json")
    tracker.log_json(parent, plan.preset.model_dump(mode="json"), "preset.json")
    return parent


def _compare(session: _Session) -> None:
    """Print the tables, and store the whole report in the sweep's folder and in its own run."""
    from mlflow.exceptions import MlflowException

    from beamplatform.report import print_comparison
    from beamplatform.report.files import PAGE, make_report
    from beamplatform.report.registry import register_best

    tracker, folder = session.tracker, session.folder / "comparison"
    runs = tracker.trial_runs(sweep=session.request.name, every_status=True)
    current = [run for run in runs if run.context == session.plan.context]
    finished = {run.method for run in current if run.status == "FINISHED" and run.role == "final"}
    report = make_report(tracker, runs, methods=[method for method in session.plan.methods if method in finished])
    print_comparison(report.comparison, session.console)
    report.write(folder)
    tracker.log_folder(session.parent, folder, "comparison")
    try:
        registered = register_best(report)
    except MlflowException as error:  # a store may have no registry and still keeps the sweep
        session.console.print(
            f"The best adapter could not be registered: {first_line(error)}", style="yellow", soft_wrap=True
        )
        registered = None
    if registered is not None:
        session.console.print(f"Registered in MLflow: {registered}", highlight=False, soft_wrap=True)
    session.console.print(f"Tables, pictures and one page: {folder / PAGE}", highlight=False, soft_wrap=True)
