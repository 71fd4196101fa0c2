"""What Ray Train runs on every worker, and the call that starts the workers."""

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
"""Seconds between two looks of Ray Train's controller at its workers. A worker that has a report waits while the one
before it was not looked at: with Ray's 2 seconds, trials of small models did little else."""
_NEVER = 1e9
"""Seconds: a run that is well is not torn down for a worker more."""


RAY = "ray"
"""The folder of a sweep in which Ray Tune and Ray Train keep files of their own; nothing here reads them."""


@dataclass(frozen=True)
class Destination:
    """Where a run's results go, as folders or URIs.

    Attributes:
        export: the exported model; the checkpoints lie beside it.
        storage: the folder of Ray's own files, see `RAY`.
        weights: whether the model is wanted; without, the export says only that the run came to its end, and how.
    """

    export: str
    storage: str
    weights: bool = True

    @property
    def checkpoints(self) -> str:
        return join(self.export.rpartition("/")[0], "checkpoints")

    def check(self) -> None:
        """See, on a worker's node, that it is the driver's storage, which has this run's folder already.

        Raises:
            UserError: this node sees another folder of that name, or none.
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
        trainer: Ray's own by default; another class of it may decide which failures are worth another try.
        max_failures: how often failed workers are started again, from the last checkpoint or, where there is none, from
            the beginning.
        until: stop after this optimizer step, where the run is not shorter.

    Raises:
        ray.train.TrainingFailedError: a worker failed for good.
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
            name=f"{trial.name}-{time.time_ns()}",  # a name that is used again would take up the old run
            storage_path=destination.storage,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=list(callbacks),
        ),
    )
    return run.fit()


def train_worker(config: dict[str, Any]) -> None:
    """Load, train, export: one worker's part of one trial. Goes on from the trial's newest checkpoint."""
    import ray.train
    import ray.train.torch

    device = ray.train.torch.get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported: it would look for a GPU

    from beamplatform.training.checkpoint_store import CheckpointStore
    from beamplatform.training.loop import Progress, Worker
    from beamplatform.training.run import start_run

    destination = Destination(**config["destination"])
    destination.check()
    context = ray.train.get_context()
    trial = Trial.model_validate(config["trial"])
    trial = trial.model_copy(update={"training": trial.training.with_workers(context.get_world_size())})
    worker = Worker(context.get_world_rank(), context.get_world_size(), device)
    # Not Ray Train's checkpoints: it hands out its newest one only, whole or damaged, and forgets them with the driver.
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
        """All workers meet here; worker 0's metrics are the ones that count. A resumed run sends its old ones again."""
        nonlocal sent
        rows, sent = progress.rows[sent:], len(progress.rows)
        ray.train.report({"rows": rows, "step": progress.step, "total_steps": run.method.plan.total_steps})

    run.train(report, config["until"])
    run.export(destination.export, weights=destination.weights)
    if worker.rank == 0:
        checkpoints.clear()
