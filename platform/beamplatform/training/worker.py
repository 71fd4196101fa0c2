"""What Ray Train runs on every worker, and the call that starts the workers."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.trial import Trial

if TYPE_CHECKING:
    from ray.train import Result, UserCallback

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Destination:
    """Where a run's results go, as folders or URIs: its exported model, and the checkpoints that Ray Train keeps."""

    export: str
    storage: str


def fit(trial: Trial, destination: Destination, *, use_gpu: bool, callbacks: Sequence[UserCallback] = ()) -> Result:
    """Train one trial on Ray Train workers and export the result; blocks until it is done.

    Raises:
        ray.train.TrainingFailedError: a worker failed for good.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    training = trial.training
    resources: dict[str, float] = {"CPU": training.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"trial": trial.model_dump(), "destination": asdict(destination)},
        scaling_config=ScalingConfig(num_workers=training.workers, use_gpu=use_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=trial.name,
            storage_path=destination.storage,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=1 if training.checkpoint_every else 0),
            callbacks=list(callbacks),
        ),
    )
    return trainer.fit()


def train_worker(config: dict[str, Any]) -> None:
    """Load, train, export: one worker's part of one trial."""
    import ray.train
    import ray.train.torch

    device = ray.train.torch.get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported: it would look for a GPU

    from beamplatform.training.checkpoint import save_checkpoint
    from beamplatform.training.loop import Place, Progress
    from beamplatform.training.run import start_run

    trial = Trial.model_validate(config["trial"])
    destination = Destination(**config["destination"])
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), device)
    resumed = ray.train.get_checkpoint()
    with resumed.as_directory() if resumed is not None else contextlib.nullcontext() as folder:
        run = start_run(trial, place, Path(folder) if folder is not None else None)
    if folder is not None:
        log.warning("%s goes on from step %d", trial.name, run.progress.step)

    run.progress.rows.append((0, {"train/trainable_parameters": float(run.trainable_parameters)}))

    def report(progress: Progress, checkpoint: bool) -> None:
        """All workers meet here; worker 0's metrics are the ones that count."""
        metrics = {"rows": progress.rows, "step": progress.step, "total_steps": run.method.plan.total_steps}
        progress.rows = []
        if not checkpoint:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as name:
            save_checkpoint(Path(name), run.engine, run.method, progress, place.worker)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(name))

    run.train(report)
    run.export(destination.export)
