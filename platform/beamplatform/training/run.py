"""One worker's run from its trial to its export, with torch.distributed but without Ray."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.data.examples import Example, tokenise
from beamplatform.data.splits import training_records
from beamplatform.io.storage import put_folder
from beamplatform.models.loading import load_base, load_tokenizer, torch_dtype
from beamplatform.training.attention import attend_within_examples
from beamplatform.training.checkpoint import load_checkpoint, save_checkpoint
from beamplatform.training.checkpoint_store import CheckpointStore
from beamplatform.training.engine import make_engine, sharding_from_the_start, whole_model, whole_parameters
from beamplatform.training.host_memory import give_back_freed_blocks
from beamplatform.training.loop import Progress, Worker, train

if TYPE_CHECKING:
    from beamplatform.config.trial import Trial
    from beamplatform.methods.base import Method


TRIAL_FILE, METRICS_FILE = "trial.json", "metrics.json"
"""Files beside the model in an export: its trial, and a list of [step, {metric: value}] for its whole training.

An export that contains the first file is complete.
"""


@dataclass
class Run:
    """What one worker holds while it trains."""

    trial: Trial
    worker: Worker
    tokenizer: Any
    examples: Sequence[Example]
    validation: Sequence[Example]
    method: Method
    engine: Any
    progress: Progress
    checkpoints: CheckpointStore | None

    def train(self, report: Callable[[Progress], None], until: int | None = None) -> None:
        """Run all remaining steps, or those up to step `until`; see `beamplatform.training.loop.train`."""

        def reached(progress: Progress, checkpoint: bool) -> None:
            if checkpoint and self.checkpoints is not None:
                save_checkpoint(self.checkpoints, self.engine, self.method, progress, self.worker)
            report(progress)

        train(
            self.trial,
            self.engine,
            self.method,
            self.worker,
            self.examples,
            self.validation,
            self.tokenizer.pad_token_id,
            self.progress,
            reached,
            until,
        )

    def export(self, destination: str, *, weights: bool = True) -> None:
        """Write the trial, its metrics and, with `weights`, the exported model to a folder or URI.

        This is a collective call.
        """
        from torch import distributed

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "export"
            if self.worker.rank == 0:
                folder.mkdir()
            if weights:
                self._export_model(folder)
            if self.worker.rank == 0:
                (folder / TRIAL_FILE).write_text(self.trial.model_dump_json(indent=2), encoding="utf-8")
                (folder / METRICS_FILE).write_text(json.dumps(self.progress.rows), encoding="utf-8")
                put_folder(folder, destination, last=TRIAL_FILE)
        distributed.barrier()

    def _export_model(self, folder: Path) -> None:
        first = self.worker.rank == 0
        merged = self.method.export_kind == "merged"
        with whole_model(self.engine, here=first) if merged else whole_parameters(self.engine) as model:
            if first:
                self.method.export(model, folder)
                if merged:
                    self.tokenizer.save_pretrained(str(folder))


def start_run(trial: Trial, worker: Worker, checkpoints: CheckpointStore | None = None) -> Run:
    """Load the model and the data, apply the method to the model, and build the engine around it.

    The run resumes from its newest intact checkpoint, if there is one.

    Args:
        trial: what to run.
        worker: this worker; torch.distributed must be initialised.
        checkpoints: the store of this run's checkpoints; None: the run has none.

    Raises:
        UserError: the model or the data cannot be read.
        ValueError: the method cannot work in this run.
    """
    import torch

    if worker.device.type == "cpu":
        give_back_freed_blocks()
    tokenizer = load_tokenizer(trial.model.path)
    records = training_records(trial.data, trial.evaluation.tasks)
    examples, validation = (
        tokenise(part, tokenizer, max_length=trial.data.max_length, loss_on=trial.data.loss_on)
        for part in (records.train, records.validation)
    )
    on_gpu = worker.device.type == "cuda"
    bf16 = torch_dtype(trial.model.dtype, on_gpu=on_gpu) == torch.bfloat16
    method = trial.make_method(len(examples))
    with sharding_from_the_start(trial.training, bf16=bf16):
        base = load_base(trial.model.path, torch_dtype(trial.model.dtype, on_gpu=on_gpu))
        # The adapter's first values come from the seed alone, so that they are the same on every worker.
        torch.manual_seed(trial.seed)
        model = method.build(base)
    if trial.training.packing and on_gpu and bf16:
        attend_within_examples(base)
    if trial.model.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = method.make_optimizer(
        [parameter for parameter in model.parameters() if parameter.requires_grad], trial.training.weight_decay
    )
    engine = make_engine(model, trial.training, optimizer, bf16=bf16)
    method.attach(engine.module, engine.optimizer)
    # From here on only dropout draws random numbers, and these must differ between workers.
    torch.manual_seed(trial.seed * 1_000_003 + worker.rank + 1)
    saved = load_checkpoint(checkpoints, engine, method, worker, trial.seed) if checkpoints else None
    progress = saved or Progress()
    return Run(trial, worker, tokenizer, examples, validation, method, engine, progress, checkpoints)
