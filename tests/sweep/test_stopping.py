"""Trials that ASHA stops or that fail, and workers that are killed: everything comes back, the sweep ends by itself."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from beamplatform.config.trial import Trial
from beamplatform.errors import UserError
from beamplatform.training.failure_policy import comes_again

pytestmark = pytest.mark.faults

TINY = {
    "training__max_steps": 12,
    "training__log_every": 4,
    "training__warmup": 0,
    "data__validation_records": 8,
}


class Rows:
    """Stands in for `MlflowWriter`: keeps the metrics of each trial, by index and step."""

    def __init__(self) -> None:
        self.of: dict[int, dict[int, dict[str, float]]] = {}

    def add(self, index: int, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        self.of.setdefault(index, {}).update(rows)

    def steps(self, index: int, metric: str = "train/loss") -> list[int]:
        return [step for step, metrics in self.of.get(index, {}).items() if metric in metrics]


def fault_hook(faults: Path) -> Callable[[], None]:
    """For Ray's worker processes: a trial's worker does what the file `faults` says before it reports that step."""

    def hook() -> None:
        import ray.train

        report = ray.train.report

        def report_or_fail(metrics: dict[str, Any], **options: Any) -> None:
            import json
            import os
            import signal

            name = ray.train.get_context().get_experiment_name().rpartition("-")[0]
            step, fault = json.loads(faults.read_text()).get(name, (None, None))
            if metrics["step"] == step and fault == "not a number":
                raise FloatingPointError(fault)
            done = faults.with_name(f"killed-{name}")
            if metrics["step"] == step and not done.exists():
                done.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            report(metrics, **options)

        ray.train.report = report_or_fail

    return hook


@pytest.fixture(scope="module")
def faults(forked_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray with two cores, and the file that says what befalls which trial: {name: [step, "killed"]}."""
    path = tmp_path_factory.mktemp("faults") / "faults.json"
    path.write_text("{}")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        runtime_env={"worker_process_setup_hook": fault_hook(path)},
    )
    yield path
    ray.shutdown()


@pytest.fixture
def run(trained_under_ray: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Train with room for two; gives the outcome and what was recorded."""

    def started(trials: list[Trial], **options: Any) -> tuple[Any, Rows]:
        rows = Rows()
        return trained_under_ray(trials, tmp_path, rows, concurrent=2, **options), rows

    return started


def actors(*filters: tuple[str, str, str]) -> list[Any]:
    """The actors of this Ray; there may be others on this machine, which the State API would come across."""
    from ray.util.state import list_actors

    return list_actors(ray.get_runtime_context().gcs_address, filters=list(filters), limit=1000, detail=True)


def workers_started() -> int:
    """How many worker processes of trials there have been."""
    return len(actors(("class_name", "=", "RayTrainWorker")))


def assert_nothing_left() -> None:
    groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    assert not groups, "train_trials returns when they are gone"
    deadline = time.monotonic() + 600  # processes that have ended, and resources that are free, are told with a delay
    while time.monotonic() < deadline:
        # The coordinator is Ray's own, one for the whole cluster, and not a trial's.
        left = actors(("state", "=", "ALIVE"), ("class_name", "!=", "_AutoscalingCoordinatorActor"))
        if not left and ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return
        time.sleep(0.5)
    raise AssertionError((left, ray.available_resources(), ray.cluster_resources()))


@pytest.mark.timeout(1200)
def test_all_trials_end_and_give_everything_back(
    faults: Path, trial: Callable[..., Trial], run: Callable[..., Any], tmp_path: Path
) -> None:
    from ray.tune.schedulers import ASHAScheduler

    # ASHA never stops the best and always the sixth, which diverges; their workers die just before that is decided.
    rates = [5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 0.3, 1e-4, 5e-5]
    best, worst = 0, 5
    trials = [trial("lora", shared__learning_rate=rate, **TINY) for rate in rates]
    faults.write_text(json.dumps({trials[index].name: [8, "killed"] for index in (best, worst)}))
    asha = ASHAScheduler("step", metric="train/loss", mode="min", grace_period=8, reduction_factor=2, max_t=12)

    outcome, rows = run(trials, scheduler=asha)

    assert all((faults.parent / f"killed-{trials[index].name}").exists() for index in (best, worst))
    assert not outcome.failed
    exported = {index for index in range(8) if (tmp_path / trials[index].name / "export" / "trial.json").exists()}
    # (A trial that is stopped can have gone on meanwhile, up to its export.)
    assert exported | set(outcome.stopped) == set(range(8)) and best not in outcome.stopped
    assert outcome.stopped[worst] == "stopped by ASHA at step 8"
    assert rows.steps(best) == [4, 8, 12] and rows.steps(worst) == [4, 8], "up to the result that decided"
    assert best in outcome.trained
    assert_nothing_left()


@pytest.mark.timeout(1200)
def test_a_failing_trial_is_not_tried_again_and_others_finish(
    faults: Path, trial: Callable[..., Trial], run: Callable[..., Any], tmp_path: Path
) -> None:
    trials = [trial("dora", **TINY), trial("lora", **TINY)]
    faults.write_text(json.dumps({trials[0].name: [8, "not a number"]}))
    before = workers_started()

    outcome, rows = run(trials)

    assert set(outcome.failed) == {0} and not outcome.stopped
    assert (
        outcome.failed[0] == "FloatingPointError: not a number"
        and rows.steps(0) == [4]
        and workers_started() - before == 2
    )
    assert (tmp_path / trials[1].name / "export" / "trial.json").exists() and rows.steps(1)[-1] == 12
    assert_nothing_left()


def test_what_would_come_again() -> None:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    lost = WorkerHealthCheckFailedError("a worker died", failure=RuntimeError())
    full = OSError(errno.ENOSPC, "No space left on device")
    for certain in (FloatingPointError(), full, PermissionError(errno.EACCES, "no"), ValueError(), UserError()):
        assert comes_again([certain]) and comes_again([RuntimeError("gloo: connection closed"), certain])
        assert not comes_again([lost, certain]), "the error may follow from the loss of the other worker"
    for passing in (ConnectionResetError(errno.ECONNRESET, "peer"), TimeoutError(), RuntimeError("NCCL"), lost):
        assert not comes_again([passing])
    assert not comes_again([])
