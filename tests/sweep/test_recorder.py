"""What is recorded on its way to MLflow: once, in order, and not lost while the store is away."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Server
from serving import free_port
from waiting import wait_until

from beamplatform.tracking import Tracker
from beamplatform.tracking.writer import MlflowWriter

TAGS = {"method": "lora", "sweep": "s", "stage": "train", "preset": "tiny", "configuration": "c"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def file_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('file')}/mlflow.db"


def runs(tracker: Tracker, count: int = 1) -> list[str]:
    """New runs of the suite that `tracker` is for."""
    tracker.prepare()
    parent = tracker.start_sweep("s", {}, {})
    return [tracker.start_trial(parent, f"t{seed}", {}, {**TAGS, "seed": seed}) for seed in range(count)]


@pytest.fixture
def tracker(file_uri: str, request: pytest.FixtureRequest) -> Tracker:
    return Tracker(file_uri, request.node.name)


def history(tracker: Tracker, run_id: str, metric: str = "train/loss") -> list[tuple[int, float]]:
    """As a user reads it: with MLflow's own client."""
    from mlflow.tracking import MlflowClient

    points = MlflowClient(tracker.uri).get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in points)


def losses(steps: range) -> list[tuple[int, dict[str, float]]]:
    return [(step, {"train/loss": 100.0 - step}) for step in steps]


# -- a real server that dies -------------------------------------------------------------------------------


def test_a_server_that_dies_amid_writes_costs_nothing(server: Server, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.WARNING, "beamplatform")
    tracker = Tracker(server.uri, "outage")
    ids = runs(tracker, 2)
    (tmp_path / "adapter.bin").write_bytes(b"\0\1")
    took: list[float] = []
    measured: list[float] = []
    stop = threading.Event()

    def train() -> None:
        """Two trials that report all the time, as Tune's callbacks do."""
        while not stop.wait(0.1):
            step = len(took)
            measured.append(time.time())
            start = time.monotonic()
            recorder.add(0, [(step, {"train/loss": float(step), "beam/threshold": 0.5})])
            recorder.add(1, [(step, {"train/loss": -float(step)})])
            took.append(time.monotonic() - start)

    def wait_for_steps(count: int) -> None:
        end = len(took) + count
        wait_until(lambda: len(took) >= end)

    recorder = MlflowWriter(tracker, ids, retry_seconds=0.2)
    training = threading.Thread(target=train)
    training.start()
    try:
        wait_for_steps(15)
        server.freeze()
        wait_for_steps(20)
        server.kill()
        wait_for_steps(15)
        recorder.set_tags(0, {"stage": "evaluate"})
        recorder.table(0, [{"prompt": "a", "correct": True}], "predictions/boolq.json")
        recorder.folder(0, str(tmp_path), "export")
        assert recorder.waiting > 30
        server.start()
        wait_for_steps(15)
    finally:
        stop.set()
        training.join()
    recorder.set_tags(0, {"stage": "done"})
    recorder.finish(0, "FINISHED")
    ended = time.time()
    recorder.finish(1, "FAILED")
    recorder.close(60)

    reported = len(took)
    took.sort()
    print(f"{reported} reports; an add took at most {took[-1]:.4f} s, mostly {took[len(took) // 2]:.6f} s")
    assert took[len(took) * 9 // 10] < 0.1 and took[-1] < 1, "the sweep must not wait for the store"
    assert recorder.waiting == 0
    assert history(tracker, ids[0]) == [(step, step) for step in range(reported)]
    assert history(tracker, ids[0], "beam/threshold") == [(step, 0.5) for step in range(reported)]
    assert history(tracker, ids[1]) == [(step, -step) for step in range(reported)]
    points = tracker.client.get_metric_history(ids[0], "train/loss")
    late = [point.timestamp / 1000 - when for point, when in zip(points, measured, strict=True)]
    assert max(late) < 1, "a value's time is when it was measured, not when it was sent"
    first, second = (tracker.client.get_run(run_id) for run_id in ids)
    assert first.data.tags["stage"] == "done", "the tags of the outage came first, these last"
    assert (first.info.status, second.info.status) == ("FINISHED", "FAILED")
    assert abs(first.info.end_time / 1000 - ended) < 1, "the end of the trial, not the end of the writing"
    table = Path(tracker.client.download_artifacts(ids[0], "predictions/boolq.json", str(tmp_path)))
    assert json.loads(table.read_text()) == {"columns": ["prompt", "correct"], "data": [["a", True]]}
    assert [file.path for file in tracker.client.list_artifacts(ids[0], "export")] == ["export/adapter.bin"]

    told = [record.getMessage() for record in caplog.records if record.name.startswith("beamplatform")]
    assert len(told) == 2, "once when it went, once when it was back"
    assert "the sweep goes on" in told[0] and "is back" in told[1]
    assert all(server.uri in line and "writes" in line for line in told)


def test_a_resumed_sweep_adds_only_what_the_server_lacks(server: Server) -> None:
    tracker = Tracker(server.uri, "resumed")
    (run_id,) = runs(tracker)
    with MlflowWriter(tracker, [run_id]) as recorder:
        recorder.add(0, losses(range(10)))
        recorder.add(0, [(9, {"validation/loss": 2.0})])
    assert tracker.logged(run_id) == {*(("train/loss", step) for step in range(10)), ("validation/loss", 9)}
    with MlflowWriter(Tracker(server.uri, "resumed"), [run_id], resumed=True) as recorder:
        recorder.add(0, [*losses(range(6, 12)), (9, {"validation/loss": 2.0}), (11, {"validation/loss": 1.0})])
        recorder.add(0, losses(range(10, 13)))
    assert history(tracker, run_id) == [(step, 100.0 - step) for step in range(13)]
    assert history(tracker, run_id, "validation/loss") == [(9, 2.0), (11, 1.0)]


def test_what_a_server_refuses_is_told_at_the_end_and_holds_up_nothing(server: Server, caplog) -> None:
    tracker = Tracker(server.uri, "refused")
    (run_id,) = runs(tracker)
    recorder = MlflowWriter(tracker, [run_id])
    recorder.add(0, [(0, {"no metric's name?": 1.0})])
    recorder.folder(0, "/no/such/folder", "export")
    recorder.add(0, losses(range(3)))
    with pytest.raises(RuntimeError, match=r"refused 2 writes: 1 metric values of run .*no metric's name") as caught:
        recorder.close(30)
    assert run_id in str(caught.value) and "no files to store at /no/such/folder" in str(caught.value)
    assert "no metric's name" in caplog.text, "told at once as well"
    assert history(tracker, run_id) == [(0, 100.0), (1, 99.0), (2, 98.0)]


def test_runs_are_begun_in_order_and_a_refused_one_holds_up_no_other(tracker: Tracker, caplog) -> None:
    from beamplatform.tracking.runs import TRIAL_TAGS

    tracker.prepare()
    parent, tags = tracker.start_sweep("s", {}, {}), dict.fromkeys(TRIAL_TAGS, "0")
    recorder = MlflowWriter(tracker, [])
    places = [recorder.begin(parent, name, {"r": 8, "no name?": 1} if name == "bad" else {"r": 8}, tags)
              for name in ("first", "bad", "last")]  # fmt: skip
    for place in places:
        recorder.add(place, losses(range(2)))
        recorder.finish(place, "FINISHED")
    with pytest.raises(RuntimeError, match=r"refused 3 writes: .*its run was refused"):
        recorder.close(30)
    found = {run.info.run_name: run for run in tracker.client.search_runs([tracker._id()])}
    for name in ("first", "last"):
        assert found[name].info.status == "FINISHED" and found[name].data.params == {"r": "8"}
        assert found[name].data.metrics["train/loss"] == 99.0


class LosesParameters(Tracker):
    """The store goes away between the making of a run and its parameters, once."""

    went = False

    def log_params(self, run_id: str, params: Any) -> None:
        if params and not self.went:
            self.went = True
            raise ConnectionResetError("connection reset by peer")
        super().log_params(run_id, params)


def test_a_run_that_was_half_made_is_completed_and_not_made_twice(file_uri: str) -> None:
    from beamplatform.tracking.runs import TRIAL_TAGS

    tracker = LosesParameters(file_uri, "half made")
    tracker.prepare()
    parent = tracker.start_sweep("s", {}, {})
    with MlflowWriter(tracker, [], retry_seconds=0.05) as recorder:
        recorder.begin(parent, "trial", {"r": 8}, dict.fromkeys(TRIAL_TAGS, "0"))
    (run,) = tracker.client.search_runs([tracker._id()], "attributes.run_name = 'trial'")
    assert tracker.went and run.data.params == {"r": "8"}


# -- a store that stays away -------------------------------------------------------------------------------


@pytest.fixture
def nowhere() -> Tracker:
    return Tracker(f"http://me:secret@127.0.0.1:{free_port()}", "suite")


def test_the_end_does_not_wait_for_ever_and_says_what_is_missing(nowhere: Tracker, caplog) -> None:
    recorder = MlflowWriter(nowhere, ["a", "b", "c"], retry_seconds=0.1)
    recorder.add(0, losses(range(3)))
    recorder.add(2, [(0, {"train/loss": 1.0, "train/tokens": 2.0})])
    recorder.set_tags(2, {"stage": "done"})
    recorder.finish(2, "FINISHED")
    wait_until(lambda: "cannot be written to" in caplog.text)  # importing MLflow may take longer than the timeout
    start = time.monotonic()
    with pytest.raises(ConnectionError) as caught:
        recorder.close(1.0)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "of 2 of 3 trials it lacks metric values: 5, tags: 1, ends of runs: 1;" in message
    assert "http://me:***@127.0.0.1" in message and "sweep.py --resume" in message and "Connection refused" in message
    assert "secret" not in message + caplog.text
    with pytest.raises(RuntimeError, match="closed"):
        recorder.add(0, losses(range(3, 4)))


def test_ctrl_c_does_not_wait_for_a_store_that_is_away(nowhere: Tracker, caplog) -> None:
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), MlflowWriter(nowhere, ["a"]) as recorder:
        recorder.add(0, losses(range(3)))
        wait_until(lambda: "cannot be written to" in caplog.text)
        start = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - start < 1
    assert "it lacks metric values: 3" in caplog.text


def test_ctrl_c_leaves_time_for_a_store_that_is_there(tracker: Tracker) -> None:
    (run_id,) = runs(tracker)
    with pytest.raises(KeyboardInterrupt), MlflowWriter(tracker, [run_id]) as recorder:
        recorder.add(0, losses(range(3)))
        raise KeyboardInterrupt
    assert len(history(tracker, run_id)) == 3


def test_another_error_is_the_one_that_is_seen(tracker: Tracker, caplog) -> None:
    (run_id,) = runs(tracker)
    with pytest.raises(ZeroDivisionError), MlflowWriter(tracker, [run_id]) as recorder:
        recorder.folder(0, "/no/such/folder", "export")
        recorder.add(0, losses(range(3)))
        raise ZeroDivisionError
    assert len(history(tracker, run_id)) == 3
    assert "refused 1 writes" in caplog.text


# -- each value once ---------------------------------------------------------------------------------------


def test_steps_that_a_restarted_worker_repeats_are_written_once(tracker: Tracker) -> None:
    (run_id,) = runs(tracker)
    with MlflowWriter(tracker, [run_id]) as recorder:
        recorder.add(0, losses(range(1, 3)))
        recorder.flush()
        time.sleep(0.01)  # MLflow itself drops a value that is equal in its time too
        recorder.add(0, [*losses(range(2, 4)), (2, {"validation/loss": 1.0})])
        recorder.add(0, [(3, {"validation/loss": 2.0}), (3, {"validation/loss": 2.0})])
    assert history(tracker, run_id) == [(1, 99.0), (2, 98.0), (3, 97.0)]
    assert history(tracker, run_id, "validation/loss") == [(2, 1.0), (3, 2.0)], "known by name and step"


class LosesAnswers(Tracker):
    """The store carries the first call out and the answer is lost. `ignores_times`: as a store that compares no times,
    `late`: the call is still on its way when the store is asked what it has."""

    ignores_times = late = False
    lost: tuple[Any, ...] | None = None

    def log_metrics(self, run_id: str, rows: Any, *, at: int | None = None) -> None:
        if self.ignores_times:
            time.sleep(0.01)
            at = None
        if self.lost is None:
            self.lost = (run_id, rows, at)
            if not self.late:
                super().log_metrics(run_id, rows[:2], at=at)
            raise ConnectionResetError("connection reset by peer")
        if self.late:
            super().log_metrics(*self.lost[:2], at=self.lost[2])
        super().log_metrics(run_id, rows, at=at)


@pytest.mark.parametrize("way", ["ignores_times", "late"])
def test_a_write_whose_answer_was_lost_is_not_doubled(file_uri: str, way: str) -> None:
    tracker = LosesAnswers(file_uri, f"answers {way}")
    setattr(tracker, way, True)
    (run_id,) = runs(tracker)
    with MlflowWriter(tracker, [run_id], retry_seconds=0.05) as recorder:
        recorder.add(0, losses(range(4)))
        recorder.add(0, losses(range(4, 6)))
    assert tracker.lost is not None
    assert history(tracker, run_id) == [(step, 100.0 - step) for step in range(6)]


# -- files -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def before_each_statement(tracker: Tracker, hook: Callable[..., Any]) -> Iterator[None]:
    """MLflow shares one engine among all clients of a file, so the hook must not stay."""
    from sqlalchemy import event

    engine = tracker.client._tracking_client.store.engine
    event.listen(engine, "before_cursor_execute", hook, retval=True)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", hook)
        engine.dispose()


def test_a_locked_file_is_waited_for(tracker: Tracker) -> None:
    (run_id,) = runs(tracker)

    def impatient(connection, cursor, statement, parameters, context, many):
        """Wait 0.1 s for a lock, not 20 as MLflow does."""
        return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), parameters

    with (
        before_each_statement(tracker, impatient),
        contextlib.closing(sqlite3.connect(tracker.uri.removeprefix("sqlite:///"))) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        recorder = MlflowWriter(tracker, [run_id], retry_seconds=0.1)
        start = time.monotonic()
        recorder.add(0, losses(range(3)))
        assert time.monotonic() - start < 0.1
        with pytest.raises(ConnectionError, match=r"database is locked.*lacks metric values: 3"):
            recorder.flush(1.0)
        other.rollback()
        recorder.close(30)
    assert len(history(tracker, run_id)) == 3


def test_a_full_disk_is_waited_for(tracker: Tracker) -> None:
    (run_id,) = runs(tracker)
    full = True

    def no_space(connection, cursor, statement, parameters, context, many):
        """SQLite's own limit of a file's size, which fails as a full disk does."""
        pages = cursor.execute("PRAGMA page_count").fetchone()[0] if full else 2**30
        cursor.execute(f"PRAGMA max_page_count = {pages}")
        return statement, parameters

    names = [f"{'x' * 200}{number}" for number in range(40)]
    with before_each_statement(tracker, no_space):
        recorder = MlflowWriter(tracker, [run_id], retry_seconds=0.1)
        recorder.add(0, [(step, dict.fromkeys(names, 1.0)) for step in range(20)])
        with pytest.raises(ConnectionError, match=r"database or disk is full.*lacks metric values: 800"):
            recorder.flush(5.0)
        full = False
        recorder.close(30)
    assert tracker.logged(run_id) == {(name, step) for name in names for step in range(20)}


# -- patience ----------------------------------------------------------------------------------------------


def test_many_writes_are_made_as_long_as_that_goes_on(tracker: Tracker) -> None:
    """The limit is on a store that takes nothing, not on a long queue."""

    class Slow(Tracker):
        def set_tags(self, run_id: str, tags: Any) -> None:
            time.sleep(0.8)
            super().set_tags(run_id, tags)

    (run_id,) = runs(tracker)
    recorder = MlflowWriter(Slow(tracker.uri, tracker.experiment), [run_id])
    for number in range(8):
        recorder.set_tags(0, {"number": number})
    recorder.close(4.0)
    assert tracker.client.get_run(run_id).data.tags["number"] == "7"
