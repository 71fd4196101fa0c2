"""What Ray Train runs on every worker, and the call that starts the workers."""

from __future__ import annotations

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
    """Where a run's results go.

    Attributes:
        tracking_uri: MLflow store.
        run_id: the trial's MLflow run; made by the driver.
        export: folder or URI of the exported model.
        storage: folder or URI that Ray Train keeps its checkpoints in.
    """

    tracking_uri: str
    run_id: str
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
        scaling_config=ScalingConfig(
            num_workers=training.workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
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

    trial = Trial.model_validate(config["trial"])
    destination = Destination(**config["destination"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported: it would look for a GPU

    import torch

    from beamplatform.data.examples import tokenise
    from beamplatform.data.splits import training_records
    from beamplatform.models import load_base, load_tokenizer, torch_dtype
    from beamplatform.tracking import Tracker
    from beamplatform.training.checkpoint import load_checkpoint, save_checkpoint
    from beamplatform.training.engine import make_engine, whole_parameters
    from beamplatform.training.loop import Place, Progress, train

    place = Place(context.get_world_rank(), context.get_world_size(), device)
    first = place.worker == 0
    on_gpu = device.type == "cuda"
    tokenizer = load_tokenizer(trial.model.path)
    records = training_records(trial.data, trial.evaluation.tasks)
    shape = {"max_length": trial.data.max_length, "loss_on": trial.data.loss_on}
    examples, validation = (tokenise(part, tokenizer, **shape) for part in (records.train, records.validation))

    # The adapter's first values come from the seed alone, so that they are the same on every worker.
    torch.manual_seed(trial.seed)
    base = load_base(trial.model, on_gpu=on_gpu)
    if trial.model.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    method = trial.make_method(len(examples))
    model = method.build(base)
    bf16 = torch_dtype(trial.model.dtype, on_gpu=on_gpu) == torch.bfloat16
    engine = make_engine(model, trial.training, trial.hyperparameters["learning_rate"], bf16=bf16)
    method.attach(engine.module, engine.optimizer)
    # From here on randomness is dropout's, which must differ between workers.
    torch.manual_seed(trial.seed * 1_000_003 + place.worker + 1)

    progress = Progress()
    resumed = ray.train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as folder:
            progress = load_checkpoint(Path(folder), engine, method, place.worker)
        log.warning("%s goes on from step %d", trial.name, progress.step)

    tracker = Tracker(destination.tracking_uri, trial.suite) if first else None
    if tracker is not None:
        trainable = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters() if p.requires_grad)
        tracker.log_metrics(destination.run_id, [(0, {"train/trainable_parameters": float(trainable)})])

    def report(progress: Progress, checkpoint: bool) -> None:
        """All workers meet here; worker 0's metrics are the ones that count."""
        if tracker is not None:
            tracker.log_metrics(destination.run_id, progress.rows)
        latest = {key: value for _, row in progress.rows for key, value in row.items()}
        latest |= {"step": progress.step, "total_steps": method.plan.total_steps}
        progress.rows = []
        if not checkpoint:
            ray.train.report(latest)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), engine, method, progress, place.worker)
            ray.train.report(latest, checkpoint=ray.train.Checkpoint.from_directory(folder))

    train(trial, engine, method, place, examples, validation, tokenizer.pad_token_id, progress, report)

    with whole_parameters(engine, everything=method.export_kind == "merged") as trained:
        if first:
            _export(trial, trained, method, tokenizer, destination.export)
    torch.distributed.barrier()


def _export(trial: Trial, model: Any, method: Any, tokenizer: Any, destination: str) -> None:
    """The exported model with the trial it came from beside it; a merged model also gets its tokenizer."""
    from beamplatform.storage import put_folder

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "export"
        folder.mkdir()
        method.export(model, folder)
        if method.export_kind == "merged":
            tokenizer.save_pretrained(str(folder))
        (folder / "trial.json").write_text(trial.model_dump_json(indent=2), encoding="utf-8")
        put_folder(folder, destination)
