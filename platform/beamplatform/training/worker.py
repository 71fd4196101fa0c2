"""The function that Ray Train runs on every worker, and the call that starts the workers."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.config.trial import Trial
from beamplatform.errors import UserError
from beamplatform.io.storage import is_uri, join
from beamplatform.metrics import TRAINED, WORKERS

if TYPE_CHECKING:
    from ray.train import Result, UserCallback
    from ray.train.torch import TorchTrainer

log = logging.getLogger(__name__)

_POLL = "0.2"
"""Seconds between two polls of the workers by Ray Train's controller.

A worker that reports waits until the controller has seen its previous report. With Ray's default of 2 seconds, trials
of small models did little but wait.
"""
_NEVER = 1e9
"""Seconds until Ray Train looks for room for more workers, so long that it never restarts a healthy run to add one."""


RAY = "ray"
"""The folder in a sweep for the internal files of Ray Tune and Ray Train; nothing here reads them."""


@dataclass(frozen=True)
class Destination:
    """Where a run's results go, as folders or URIs.

    Attributes:
        export: the folder of the exported model; the checkpoints are stored beside it.
        storage: the folder of Ray's internal files, see `RAY`.
        weights: whether the model is exported; if not, the export holds only the trial and its metrics.
    """

    export: str
    storage: str
    weights: bool = True

    @property
    def checkpoints(self) -> str:
        return join(self.export.rpartition("/")[0], "checkpoints")

    def check(self) -> None:
        """Check that this worker's node sees the driver's storage, in which this run's folder exists already.

        Raises:
            UserError: this node does not see that folder.
        """
        folder = Path(self.storage).parent
        if not is_uri(self.storage) and not folder.is_dir():
            raise UserError(
                f"--storage: the node {platform.node()} does not see {folder}; give a folder that all nodes share, or "
                "a URI such as s3://BUCKET/sweeps"
            )


def train_on_ray(
    trial: Trial,
    destination: Destination,
    *,
    use_gpu: bool,
    trainer: type[TorchTrainer] | None = None,
    callbacks: Sequence[UserCallback] = (),
    max_failures: int = 3,
    until: int | None = None,
) -> Result:
    """Train one trial on Ray Train workers and export the result; blocks until it is done.

    Args:
        trainer: Ray's `TorchTrainer` by default; a subclass can decide which failures are retried.
        max_failures: how often failed workers are restarted, from the last checkpoint or, without one, from the
            beginning.
        until: stop after this optimizer step, unless the run ends earlier.

    Raises:
        ray.train.TrainingFailedError: a worker failed, and it is not restarted any more.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL)
    training, counts = trial.training, trial.training.worker_counts
    resources: dict[str, float] = {"CPU": training.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = training.gpus_per_worker
    run = (trainer or TorchTrainer)(
        train_worker,
        train_loop_config={"trial": trial.model_dump(), "destination": asdict(destination), "until": until},
        scaling_config=ScalingConfig(
            num_workers=training.workers if isinstance(training.workers, int) else (counts[-1], counts[0]),
            use_gpu=use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=_NEVER,
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=f"{trial.name}-{time.time_ns()}",  # with a reused name, Ray would resume the old run
            storage_path=destination.storage,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=list(callbacks),
        ),
    )
    return run.fit()


def train_worker(config: dict[str, Any]) -> None:
    """Do one worker's part of a trial: load, resume from the newest checkpoint, train and export."""
    import ray.train
    import ray.train.torch

    device = ray.train.torch.get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # set before DeepSpeed is imported, which would look for a GPU

    from beamplatform.training.checkpoint_store import CheckpointStore
    from beamplatform.training.loop import Progress, Worker
    from beamplatform.training.run import start_run

    destination = Destination(**config["destination"])
    destination.check()
    context = ray.train.get_context()
    trial = Trial.model_validate(config["trial"])
    trial = trial.model_copy(update={"training": trial.training.with_workers(context.get_world_size())})
    worker = Worker(context.get_world_rank(), context.get_world_size(), device)
    # Ray Train's own checkpoints are not used: it offers only the newest one, even if damaged, and forgets all of them
    # when the driver ends.
    checkpoints = CheckpointStore(destination.checkpoints)
    run = start_run(trial, worker, checkpoints)
    before = [row[WORKERS] for _, row in run.progress.rows if WORKERS in row]
    if run.progress.step:
        log.warning("%s goes on from step %d", trial.name, run.progress.step)
        if before and before[-1] != worker.world_size:
            run.progress.rows.append((run.progress.step, {WORKERS: float(worker.world_size)}))
    else:
        first = {TRAINED: float(run.method.trained_parameters()), WORKERS: worker.world_size}
        run.progress.rows.append((0, {name: float(value) for name, value in first.items()}))
    sent = 0

    def report(progress: Progress) -> None:
        """Send the new rows to Ray Train, which waits for all workers and takes worker 0's metrics.

        A resumed run sends its old rows again.
        """
        nonlocal sent
        rows, sent = progress.rows[sent:], len(progress.rows)
        ray.train.report({"rows": rows, "step": progress.step, "total_steps": run.method.plan.total_steps})

    run.train(report, config["until"])
    run.export(destination.export, weights=destination.weights)
    if worker.rank == 0:
        checkpoints.clear()
