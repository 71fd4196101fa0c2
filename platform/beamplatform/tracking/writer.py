"""Writes the trials' events to MLflow, each once and in order, and keeps them while the store is away."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from beamplatform.io.storage import local_folder
from beamplatform.tracking.outage import is_away
from beamplatform.tracking.store import redact

if TYPE_CHECKING:
    from beamplatform.tracking import Status, Tracker

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""Pause before the next try while the store is away."""

TIMEOUT_SECONDS = 600.0
"""How long the end of a sweep waits for a store that accepts no write."""

INTERRUPT_SECONDS = 5.0
"""How long a sweep that was stopped with Ctrl-C waits for a store that is not away."""

Rows = Sequence[tuple[int, dict[str, float]]]


@dataclass(frozen=True)
class _Write:
    """One write to the store.

    Attributes:
        index: the trial's index.
        what: the kind of values written, in the plural, for messages.
        count: how many of these are written.
        make: makes the write.
    """

    index: int
    what: str
    count: int
    make: Callable[[], None]


class MlflowWriter:
    """Writes what happens to a sweep's trials, one write after the other, in its own thread.

    Workers report to Ray, Ray reports to the driver, and the writer runs in the driver. So only one process writes to
    an SQLite store, and the workers of a cluster need no connection to the tracking server. No method that records
    something waits for the store, so neither a dead server nor a full disk holds up training. A write that fails
    because the store is away is tried again until it succeeds. A write that the store refuses for good is left out, and
    `close` reports it.

    The writer is a context manager. Leaving the context closes the writer, but does not replace the error that ended
    the sweep. After an interruption it does not wait long.

    Args:
        run_ids: the MLflow run of each trial so far; the methods identify a trial by its index in this list.
        resumed: whether the runs may hold values already, which are then not written again.
        retry_seconds: pause before the next try while the store is away.
    """

    def __init__(
        self, tracker: Tracker, run_ids: Sequence[str], *, resumed: bool = False, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self._tracker = tracker
        self._run_ids: list[str | None] = list(run_ids)  # None until the store has made the run
        self._retry_seconds = retry_seconds
        # Shared by both threads, under the condition's lock.
        self._changed = threading.Condition()
        self._queue: deque[_Write] = deque()
        self._seen: list[set[tuple[str, int]]] = [set() for _ in run_ids]
        self._away: Exception | None = None
        self._refused: list[str] = []
        self._last_progress = time.monotonic()
        self._stopped = False
        # Only for the writing thread: the values that the store holds of each run, and the runs that it must ask about.
        self._held: dict[int, set[tuple[str, int]]] = {}
        self._unknown = set(range(len(run_ids)) if resumed else ())
        # A daemon, so that a call into MLflow that does not return cannot keep the process from ending.
        threading.Thread(target=self._work, name="recorder", daemon=True).start()

    def __enter__(self) -> MlflowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, Exception):
            try:
                self.close()
            except (ConnectionError, RuntimeError) as also:  # the user must see the error that ended the sweep
                log.error("%s", also)
        else:
            self.abandon()

    # -- what is recorded ----------------------------------------------------------------------------------

    def begin(self, parent: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> int:
        """Start a trial's run below the sweep's run `parent`; return the trial's index."""
        index = self._add_trial(None)
        tried = False

        def make() -> None:
            nonlocal tried
            # A request whose answer was lost may have been carried out.
            run_id = self._tracker.find_trial(parent, name) if tried else None
            tried = True
            if run_id is None:
                run_id = self._tracker.start_trial(parent, name, params, tags)
            else:
                self._tracker.log_params(run_id, params)  # MLflow accepts equal parameters again
            self._run_ids[index] = run_id

        self._put(index, "runs", 1, make)
        return index

    def resume(self, run_id: str) -> int:
        """Add a trial whose run exists and may hold values already; return the trial's index."""
        index = self._add_trial(run_id)
        self._unknown.add(index)  # before any write of this trial is queued
        return index

    def reopen(self, index: int) -> None:
        """Set the trial's run to RUNNING again, and delete the tags about its end."""
        self._put(index, "reopened runs", 1, lambda: self._tracker.reopen(self._run(index)))

    def add(self, index: int, rows: Rows) -> None:
        """Record metrics of a trial, except those whose name and step were recorded before.

        A restarted worker repeats its last steps, and a resumed sweep repeats whole trials, with the same values.
        """
        with self._changed:
            new, now = _unseen(rows, self._seen[index]), _milliseconds()
            values = sum(len(metrics) for _, metrics in new)
            self._put(index, "metric values", values, lambda: self._send(index, new, now))

    def set_tags(self, index: int, tags: Mapping[str, Any]) -> None:
        kept = dict(tags)
        self._put(index, "tags", len(kept), lambda: self._tracker.set_tags(self._run(index), kept))

    def table(self, index: int, rows: Sequence[Mapping[str, Any]], file: str) -> None:
        """Store rows as a table in the artifact `file`; see `Tracker.log_table`."""
        self._put(index, "tables", 1, lambda: self._tracker.log_table(self._run(index), rows, file))

    def folder(self, index: int, location: str, artifact_path: str) -> None:
        """Store the files of a folder or URI as artifacts. They must stay there until they are written."""

        def make() -> None:
            with local_folder(location) as folder:
                self._tracker.log_folder(self._run(index), folder, artifact_path)

        self._put(index, "folders", 1, make)

    def finish(self, index: int, status: Status) -> None:
        """End the trial's run; the time of this call counts as its end."""
        now = _milliseconds()
        self._put(index, "ends of runs", 1, lambda: self._tracker.finish(self._run(index), status, at=now))

    # -- waiting for the store -----------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many writes are not made yet."""
        with self._changed:
            return len(self._queue)

    def flush(self, timeout: float = TIMEOUT_SECONDS) -> None:
        """Wait until everything is written. There is no time limit as long as writes succeed.

        Raises:
            ConnectionError: nothing could be written for `timeout` seconds; the message says what is missing.
        """
        started = time.monotonic()
        with self._changed:
            while self._queue:
                left = max(started, self._last_progress) + timeout - time.monotonic()
                if left <= 0:
                    raise ConnectionError(self._missing())
                self._changed.wait(left)

    def close(self, timeout: float = TIMEOUT_SECONDS) -> None:
        """Wait as `flush` does, then end the writing thread.

        Raises:
            ConnectionError: see `flush`.
            RuntimeError: the store refused some writes for good; the message says which. All others are written.
        """
        try:
            self.flush(timeout)
        finally:
            self._stop()
        if self._refused:
            raise RuntimeError(self._refusals())

    def abandon(self, seconds: float = INTERRUPT_SECONDS) -> None:
        """Wait up to `seconds` for the remaining writes, or not at all if the store is away, and drop the rest."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._queue or self._away is not None, seconds)
        finally:
            self._stop()
        if self._queue:
            log.warning("%s", self._missing())
        if self._refused:
            log.error("%s", self._refusals())

    # -- the writing thread --------------------------------------------------------------------------------

    def _add_trial(self, run_id: str | None) -> int:
        """Add a trial and return its index."""
        with self._changed:
            self._run_ids.append(run_id)
            self._seen.append(set())
            return len(self._run_ids) - 1

    def _put(self, index: int, what: str, count: int, make: Callable[[], None]) -> None:
        with self._changed:
            if self._stopped:
                raise RuntimeError("the writer is closed: nothing can be recorded any more")
            if count:
                self._queue.append(_Write(index, what, count, make))
                self._changed.notify_all()

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if self._stopped:
                    return
                write = self._queue[0]
            refused = ""
            try:
                write.make()
            # MLflow raises errors of its own, of requests, of SQLAlchemy and of the artifacts' storage.
            except Exception as error:
                if is_away(error):
                    self._pause(error)
                    continue
                run = self._run_ids[write.index] or f"number {write.index}"
                refused = f"{write.count} {write.what} of run {run}: {_reason(error)}"
                log.error("the tracking store refuses %s", refused)
            self._done(refused)

    def _pause(self, error: Exception) -> None:
        """Warn once that the store is away, and wait before the next try."""
        with self._changed:
            if self._away is None:
                log.warning(
                    "the tracking store %s cannot be written to (%s); the sweep goes on, and its values are kept until "
                    "the store is back: %d writes are waiting",
                    redact(self._tracker.uri), _reason(error), len(self._queue),
                )  # fmt: skip
            self._away = error
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped, self._retry_seconds)

    def _done(self, refused: str) -> None:
        with self._changed:
            if refused:
                self._refused.append(refused)
            if self._away is not None:
                log.warning(
                    "the tracking store %s is back; the %d writes that waited are sent now",
                    redact(self._tracker.uri), len(self._queue),
                )  # fmt: skip
            self._away = None
            self._queue.popleft()
            self._last_progress = time.monotonic()
            self._changed.notify_all()

    def _run(self, index: int) -> str:
        run_id = self._run_ids[index]
        if run_id is None:  # writes are made in order, so the store refused to make the run
            raise LookupError("its run was refused")  # a final error, no outage; see `is_away`
        return run_id

    def _send(self, index: int, rows: Rows, now: int) -> None:
        """Write the metrics that the run does not hold yet.

        A request whose answer was lost may have been carried out, in part or as a whole. So after a failure the store
        is asked what it holds. If it carries out that request even later, the repeated values are equal in every field,
        because their times are equal, and MLflow's databases keep such a value once.
        """
        run_id = self._run(index)
        if index in self._unknown:
            self._held[index] = self._tracker.logged(run_id)
            self._unknown.discard(index)
        new = _unseen(rows, self._held.get(index, set()))
        try:
            self._tracker.log_metrics(run_id, new, at=now)
        except Exception:
            self._unknown.add(index)
            raise

    # -- messages ------------------------------------------------------------------------------------------

    def _missing(self) -> str:
        counts: Counter[str] = Counter()
        for write in self._queue:
            counts[write.what] += write.count
        missing = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
        runs = len({write.index for write in self._queue})
        why = f" ({_reason(self._away)})" if self._away is not None else ""
        text = (
            f"the tracking store {redact(self._tracker.uri)} cannot be written to{why}; of {runs} of "
            f"{len(self._run_ids)} trials it lacks {missing}; `sweep.py --resume` sends that later"
        )
        return f"{text}; {self._refusals()}" if self._refused else text

    def _refusals(self) -> str:
        shown = "; ".join(self._refused[:3]) + ("; ..." if len(self._refused) > 3 else "")
        return f"the tracking store {redact(self._tracker.uri)} refused {len(self._refused)} writes: {shown}"


def _unseen(rows: Rows, seen: set[tuple[str, int]]) -> list[tuple[int, dict[str, float]]]:
    """Return the rows without values whose (name, step) is in `seen`, and add all remaining ones to `seen`."""
    new = []
    for step, metrics in rows:
        rest = {name: value for name, value in metrics.items() if (name, step) not in seen}
        seen.update((name, step) for name in rest)
        if rest:
            new.append((step, rest))
    return new


def _milliseconds() -> int:
    return int(time.time() * 1000)


def _reason(error: Exception) -> str:
    """Return the first line of an error (of the innermost one if errors are nested) without passwords."""
    innermost = getattr(error.__cause__, "orig", None) or error  # SQLAlchemy and MLflow wrap a driver's error
    line = (str(innermost).splitlines() or [""])[0]
    if "Caused by " in line:
        line = line.rpartition("Caused by ")[2].removesuffix(")")
    return redact(line)[:300] or type(error).__name__
