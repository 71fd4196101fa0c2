"""Writes and reads the runs of one suite in MLflow."""

from __future__ import annotations

import getpass
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.errors import UserError, first_line
from beamplatform.tracking.runs import ENDS, NOTE, STATUSES, TRIAL_TAGS, Status, SweepRun, TrialRecord, flatten
from beamplatform.tracking.store import check_store, mlflow_program, redact, resolve_uri, sqlite_path

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_PARENT = "mlflow.parentRunId"
_TAG_LIMIT = 8000


class Tracker:
    """Writes and reads the runs of one experiment.

    Everything goes through an explicit `MlflowClient`, because MLflow's fluent functions keep a current run per
    process. They also follow ``MLFLOW_RUN_ID`` and ``MLFLOW_EXPERIMENT_ID`` from the environment, and in a
    sweep's workers these variables point at other runs. A tracker can be pickled, and `uri` means the same
    store in every process of this machine.

    Args:
        uri: see `resolve_uri`.
        experiment: the suite's name.

    Raises:
        UserError: the URI names no store that can be used.
    """

    def __init__(self, uri: str | None = None, experiment: str = "beamlora") -> None:
        self.uri = resolve_uri(uri)
        self.experiment = experiment
        self._client: MlflowClient | None = None
        self._experiment_id: str | None = None

    def __reduce__(self) -> tuple[type[Tracker], tuple[str, str]]:
        return type(self), (self.uri, self.experiment)

    @property
    def client(self) -> MlflowClient:
        """MLflow's client. It is made on first use, because its import alone takes seconds."""
        if self._client is None:
            from mlflow.tracking import MlflowClient

            # With a server MLflow prints two lines to stdout when a run ends; only this variable stops it.
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            # MLflow reads these at every request. Its defaults (7 tries, 120 s each) keep a caller waiting for minutes,
            # and `MlflowWriter` tries again by itself. The server must store a large file within this time.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
            if "MLFLOW_LOGGING_LEVEL" not in os.environ:
                for name in ("mlflow", "alembic"):
                    logging.getLogger(name).setLevel(logging.WARNING)
                # This logger prints a hundred lines for each database error, although MLflow also raises the error.
                logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
            self._client = MlflowClient(tracking_uri=self.uri)
        return self._client

    # -- the store -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the store's schema and the experiment if they are missing.

        Call it once, in the driver, before any worker starts: processes that open a new SQLite file at the same
        time all fail in MLflow's migrations. Artifacts of an SQLite store go to ``mlartifacts`` beside the file.

        Raises:
            UserError: the store cannot be used, which is found out within seconds.
        """
        self._open(create=True)
        experiment_id = self._find_experiment()
        if experiment_id is not None:
            self._experiment_id = experiment_id
            return
        path = sqlite_path(self.uri)
        location = (path.parent / "mlartifacts" / self.experiment).as_uri() if path is not None else None
        self._experiment_id = self.client.create_experiment(self.experiment, artifact_location=location)

    def _open(self, *, create: bool) -> None:
        check_store(self.uri, create=create)
        from mlflow.exceptions import MlflowException

        try:
            self.client.search_experiments(max_results=1)
        except MlflowException as error:
            reason = redact(first_line(error))
            if "out-of-date database schema" in reason:
                raise UserError(
                    f"the tracking store {redact(self.uri)} has the schema of another release of MLflow: copy the "
                    f"database, then run `{mlflow_program()} db upgrade {redact(self.uri)}`; nothing was changed in it"
                ) from error
            raise UserError(f"the tracking store {redact(self.uri)} cannot be used: {reason}") from error

    def _find_experiment(self) -> str | None:
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"the experiment {self.experiment!r} in {redact(self.uri)} was deleted: bring it back with "
                f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`, or name another store"
            )
        return str(experiment.experiment_id)

    def _id(self) -> str:
        if self._experiment_id is None:
            self._experiment_id = self._find_experiment()
        if self._experiment_id is None:
            raise RuntimeError(f"experiment {self.experiment!r} does not exist: call prepare() in the driver first")
        return self._experiment_id

    # -- writing -------------------------------------------------------------------------------------------

    def start_sweep(self, sweep: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """Start the parent run of a sweep and return its id. The tag ``sweep`` is added to the given tags."""
        return self._start(sweep, params, {**tags, "sweep": sweep})

    def start_trial(self, parent: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """Start a trial's run below the sweep's run `parent` and return its id.

        Raises:
            ValueError: a tag of `TRIAL_TAGS` is missing, so the trial could not be found or grouped later.
        """
        missing = [tag for tag in TRIAL_TAGS if tag not in tags]
        if missing:
            raise ValueError(f"trial {name!r} lacks the tags {', '.join(missing)}")
        return self._start(name, params, {**tags, _PARENT: parent})

    def find_trial(self, parent: str, name: str) -> str | None:
        """Return the run id of a sweep's trial by its name, or None if there is none."""
        runs = self._search(f"tags.`{_PARENT}` = '{parent}' AND attributes.run_name = '{name}'")
        return str(runs[0].info.run_id) if runs else None

    def start_evaluation(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """Start the run of an evaluation that belongs to no sweep and return its id. Comparisons do not find it."""
        return self._start(name, params, {**tags, "stage": "evaluate"})

    def _start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        all_tags = {"mlflow.user": _user(), "mlflow.source.type": "LOCAL", **_tag_texts(tags)}
        run = self.client.create_run(self._id(), tags=all_tags, run_name=name)
        run_id = str(run.info.run_id)
        self.log_params(run_id, params)
        return run_id

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Record parameters under flat dotted names (`flatten`). MLflow refuses to change a parameter later."""
        from mlflow.entities import Param

        self.client.log_batch(run_id, params=[Param(name, value) for name, value in flatten(params).items()])

    def log_metrics(
        self, run_id: str, rows: Sequence[tuple[int, Mapping[str, float]]], *, at: int | None = None
    ) -> None:
        """Record ``(step, metrics)`` rows in as few calls as possible: each call is a transaction or a request.

        Args:
            at: when the values were measured, in milliseconds since the epoch; ``None`` means now. MLflow keeps equal
                values of the same time once, so a call can be repeated.
        """
        from mlflow.entities import Metric

        at = at if at is not None else int(time.time() * 1000)
        entries = [Metric(key, float(value), at, step) for step, metrics in rows for key, value in metrics.items()]
        self.client.log_batch(run_id, metrics=entries)  # MLflow splits it into calls of at most 1000 values

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Set tags, replacing earlier ones of the same names."""
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in _tag_texts(tags).items()])

    def log_folder(self, run_id: str, local_folder: str | Path, artifact_path: str | None = None) -> None:
        """Store a folder's files below ``artifact_path`` among the run's artifacts.

        Raises:
            FileNotFoundError: the folder is missing or empty; MLflow would store nothing and raise no error.
        """
        folder = Path(local_folder)
        if not folder.is_dir() or not any(folder.iterdir()):
            raise FileNotFoundError(f"no files to store at {folder}")
        self.client.log_artifacts(run_id, str(folder), artifact_path)

    def log_table(self, run_id: str, rows: Sequence[Mapping[str, Any]], artifact_file: str) -> None:
        """Store records, for example predictions in ``predictions/<task>.json``, as a table that MLflow's UI shows.

        The format is that of MLflow's own ``log_table``. That function adds to an existing file; this one replaces it.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        columns = list(rows[0]) if rows else []
        table = {"columns": columns, "data": [[row[column] for column in columns] for row in rows]}
        self.client.log_text(run_id, json.dumps(table, ensure_ascii=False), artifact_file)
        logged = json.loads(self.client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        entry = {"path": artifact_file, "type": "table"}
        if entry not in logged:
            self.set_tags(run_id, {MLFLOW_LOGGED_ARTIFACTS: json.dumps([*logged, entry])})

    def log_json(self, run_id: str, value: Mapping[str, Any], artifact_file: str) -> None:
        """Store one JSON document, for example ``environment.json``."""
        self.client.log_text(run_id, json.dumps(dict(value), ensure_ascii=False, indent=2) + "\n", artifact_file)

    def finish(self, run_id: str, status: Status, *, at: int | None = None) -> None:
        """End a run as FINISHED, FAILED or KILLED, now or ``at`` a time in milliseconds since the epoch."""
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
        self.client.set_terminated(run_id, status, end_time=at)

    def reopen(self, run_id: str) -> None:
        """Set a run that ended, or whose driver died, to RUNNING again, and delete the tags about its end."""
        self.client.update_run(run_id, status="RUNNING")
        for tag in ENDS.intersection(self.client.get_run(run_id).data.tags):
            self.client.delete_tag(run_id, tag)

    def finish_unfinished(self, parent: str, status: Status) -> list[str]:
        """End every run of a sweep that is still open, the parent last, and return the names of these runs."""
        still_open = [run for run in self._search(f"tags.`{_PARENT}` = '{parent}'") if run.info.status not in STATUSES]
        parent_run = self.client.get_run(parent)
        if parent_run.info.status not in STATUSES:
            still_open.append(parent_run)
        for run in still_open:
            self.finish(run.info.run_id, status)
        return [str(run.info.run_name) for run in still_open]

    # -- reading -------------------------------------------------------------------------------------------

    def logged(self, run_id: str) -> set[tuple[str, int]]:
        """Return the (name, step) of every metric value that a run holds already."""
        names = self.client.get_run(run_id).data.metrics
        return {(name, point.step) for name in names for point in self.client.get_metric_history(run_id, name)}

    def sweeps(self, suite: str | None = None) -> list[SweepRun]:
        """Return the sweeps of a suite (``None``: this tracker's experiment), newest first. Creates nothing.

        Raises:
            UserError: the store cannot be used, or holds no run of the suite.
        """
        reader = self._reader(suite)
        return [
            _sweep_run(run) for run in reader._search("") if _PARENT not in run.data.tags and "sweep" in run.data.tags
        ]

    def trial_runs(
        self, suite: str | None = None, sweep: str | None = None, *, every_status: bool = False
    ) -> list[TrialRecord]:
        """Return the trials of one sweep, oldest first. ``sweep=None`` means the newest sweep.

        Only finished trials are returned; with ``every_status``, also failed, killed and running ones. Creates
        nothing.

        Raises:
            UserError: the store cannot be used, or holds no such suite or sweep; the message names the existing
            ones.
        """
        reader = self._reader(suite)
        runs = reader._search("")
        names = list(dict.fromkeys(run.data.tags["sweep"] for run in runs if "sweep" in run.data.tags))
        if not names:
            raise UserError(f"the suite {reader.experiment!r} has no sweeps in {redact(self.uri)}")
        if sweep is not None and sweep not in names:
            raise UserError(
                f"the suite {reader.experiment!r} has no sweep {sweep!r}; its sweeps, newest first: {', '.join(names)}"
            )
        sweep_name = sweep if sweep is not None else names[0]
        trials = [
            _trial_run(run)
            for run in reversed(runs)
            if _PARENT in run.data.tags
            and run.data.tags.get("sweep") == sweep_name
            and all(tag in run.data.tags for tag in TRIAL_TAGS)
        ]
        return [trial for trial in trials if every_status or trial.status == "FINISHED"]

    def download(self, run_id: str, artifact_path: str, folder: Path) -> Path | None:
        """Copy a run's artifact, a file or a folder, below `folder`; return its path, or None if there is none."""
        from mlflow.exceptions import MlflowException

        name = artifact_path.rpartition("/")[0]
        if artifact_path not in {file.path for file in self.client.list_artifacts(run_id, name or None)}:
            return None
        try:
            return Path(self.client.download_artifacts(run_id, artifact_path, str(folder)))
        except (OSError, MlflowException):  # the artifact is listed, but its files are gone
            return None

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Return a metric's (step, value) pairs, in the order of the steps."""
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, metric))

    def _reader(self, suite: str | None) -> Tracker:
        """Return a tracker of the suite's experiment, which must exist."""
        reader = Tracker(self.uri, suite or self.experiment)
        reader._client = self._client
        reader._open(create=False)
        self._client = reader._client
        if reader._find_experiment() is None:
            names = [other.name for other in reader.client.search_experiments() if other.name != "Default"]
            suites = f"suites with runs there: {', '.join(sorted(names))}" if names else "it holds no runs yet"
            raise UserError(f"no runs of the suite {reader.experiment!r} in {redact(self.uri)}; {suites}")
        return reader

    def _search(self, condition: str) -> list[Run]:
        """Return every run of the experiment that meets the condition, newest first."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self._id()],
                filter_string=condition,
                max_results=1000,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs.extend(page)
            token = page.token
            if not token:
                return runs


def _tag_texts(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value)[:_TAG_LIMIT] for key, value in tags.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        return "unknown"


def _sweep_run(run: Run) -> SweepRun:
    return SweepRun(
        run_id=run.info.run_id,
        name=run.data.tags["sweep"],
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        status=run.info.status,
        started=run.info.start_time,
        tags=dict(run.data.tags),
    )


def _trial_run(run: Run) -> TrialRecord:
    tags = run.data.tags
    return TrialRecord(
        run_id=run.info.run_id,
        name=str(run.info.run_name),
        method=tags["method"],
        seed=int(tags["seed"]),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        status=run.info.status,
        sweep=tags["sweep"],
        configuration=tags["configuration"],
        preset=tags["preset"],
        started=run.info.start_time,
        role=tags.get("role", ""),
        context=tags.get("context", ""),
        why=tags.get("stopped") or tags.get("error") or "",
        notes={tag.removeprefix(NOTE): text for tag, text in tags.items() if tag.startswith(NOTE)},
    )
