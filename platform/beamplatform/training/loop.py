"""The training loop of one worker: batches in, a trained model and its metrics out.

Nothing here depends on Ray: `worker.py` passes in the worker's rank and a function that reports progress.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from beamplatform.data.batches import BatchPlan, collate, micro_batches, pack
from beamplatform.data.examples import IGNORED, Example
from beamplatform.metrics import FINAL_PARAMETERS, MEMORY, SECONDS, TRAIN_LOSS, VALIDATION_LOSS
from beamplatform.training.loss import LossHead, summed_loss

if TYPE_CHECKING:
    import torch

    from beamplatform.config.trial import Trial
    from beamplatform.methods.base import Method

Row = tuple[int, dict[str, float]]
"""An optimizer step, and its metrics by name."""


@dataclass
class Meter:
    """This worker's loss and tokens since the last reading, and the run's seconds of training.

    The seconds leave out the time between an interruption and the resumption.
    """

    loss: float = 0.0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    pending: list[torch.Tensor] = field(default_factory=list)

    def add(self, losses: Sequence[torch.Tensor], tokens: int) -> None:
        """Add one optimizer step.

        The losses stay on their device until they are read, so that no step waits for a GPU.
        """
        self.pending += losses
        self.steps += 1
        self.tokens += tokens

    def state(self) -> list[float]:
        """Loss, steps, tokens and seconds as plain numbers, for `restore`."""
        self._settle()
        return [self.loss, self.steps, self.tokens, self.seconds]

    def _settle(self) -> None:
        for loss in self.pending:
            self.loss += float(loss)
        self.pending = []

    def restore(self, state: Sequence[float]) -> None:
        """Take over the `state` of a saved meter; the losses of several saved meters add up."""
        self.loss += state[0]
        self.steps, self.tokens, self.seconds = int(state[1]), int(state[2]), state[3]

    def read(self, step: int, worker: Worker) -> dict[str, float]:
        """Return the metrics since the last reading, and reset the meter.

        They are the mean loss per step, the tokens per second over all workers, this worker's peak memory in bytes, and
        the run's seconds of training so far, which are not reset. This is a collective call.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        import torch
        from torch import distributed

        self._settle()
        summed = torch.tensor(self.loss, dtype=torch.float64, device=worker.device)
        distributed.all_reduce(summed)
        loss = float(summed) / self.steps
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step}: lower the learning rate, or look at the data")
        elapsed = time.perf_counter() - self.started
        self.seconds += elapsed
        metrics = {
            TRAIN_LOSS: loss,
            SECONDS: self.seconds,
            "train/tokens_per_second": self.tokens / elapsed,
            MEMORY: float(_peak_memory(worker.device)),
        }
        self.loss, self.steps, self.tokens, self.started = 0.0, 0, 0, time.perf_counter()
        return metrics


@dataclass
class Progress:
    """How far a run is: the state that a resumed run needs beyond that of the engine and the method.

    Attributes:
        step: number of optimizer steps taken.
        rows: every step so far that has metrics, with its metrics.
    """

    step: int = 0
    rows: list[Row] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)


Collate = Callable[[Sequence[Example]], dict[str, Any]]
"""Turns examples into one batch of tensors."""


@dataclass(frozen=True)
class Worker:
    """One worker of a run: its rank from 0, the number of workers, and its device."""

    rank: int
    world_size: int
    device: torch.device


def train(
    trial: Trial,
    engine: Any,
    method: Method,
    worker: Worker,
    examples: Sequence[Example],
    validation: Sequence[Example],
    pad_id: int,
    progress: Progress,
    report: Callable[[Progress, bool], None],
    until: int | None = None,
) -> None:
    """Run all remaining optimizer steps, or those up to step `until`.

    `report(progress, checkpoint)` is called on every worker at the same steps; `checkpoint` says whether one is due.

    The loss of a global batch is the mean over its counted tokens, for any number of workers and micro-batches: each
    micro-batch's summed loss is divided by the number of counted tokens in the whole batch, which every worker knows
    from the plan.

    Raises:
        FloatingPointError: the loss or the gradient is not finite.
    """
    training, total = trial.training, method.plan.total_steps
    plan = BatchPlan([len(e.ids) for e in examples], training.global_batch, trial.seed)
    batches = plan.from_step(progress.step)

    def collated(part: Sequence[Example]) -> dict[str, Any]:
        return pack(part, worker.device) if training.packing else collate(part, pad_id, worker.device)

    peak = trial.hyperparameters["learning_rate"]
    meter = progress.meter
    meter.started = time.perf_counter()
    engine.train()
    while progress.step < (total if until is None else min(until, total)):
        batch = next(batches)
        rate = peak * method.learning_rate_factor(progress.step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        targets = max(1, sum(examples[i].targets for i in batch))
        parts = micro_batches(batch, worker=worker.rank, workers=worker.world_size, micro_batch=training.micro_batch)
        losses = []
        for number, part in enumerate(parts, start=1):
            inputs = collated([examples[i] for i in part])
            loss = summed_loss(engine, inputs, training.loss_head) / targets
            losses.append(loss.detach())
            # DeepSpeed averages over workers and micro-batches, but this loss is already a share of the batch's mean.
            engine.backward(loss * (len(parts) * worker.world_size))
            if number == len(parts):
                method.before_step()
            engine.step()
        progress.step += 1
        if engine.skipped_steps:  # DeepSpeed's ZeRO stages skip such a step silently
            raise FloatingPointError(
                f"the gradient is not finite at step {progress.step}: lower the learning rate, or look at the data"
            )
        meter.add(losses, sum(len(examples[i].ids) for i in batch))
        metrics = method.after_step(progress.step)
        last = progress.step == total
        if last or progress.step % training.log_every == 0:
            metrics |= {"train/learning_rate": rate, **meter.read(progress.step, worker)}
        if last:
            metrics[FINAL_PARAMETERS] = float(method.trained_parameters())
        validate = last or (training.validate_every is not None and progress.step % training.validate_every == 0)
        if validate:
            metrics[VALIDATION_LOSS] = validation_loss(
                engine, validation, worker, training.micro_batch, collated, training.loss_head
            )
        if metrics:
            progress.rows.append((progress.step, metrics))
        every = training.checkpoint_every
        checkpoint = every is not None and progress.step % every == 0 and not last
        if validate or checkpoint or progress.step % training.log_every == 0:
            report(progress, checkpoint)


def validation_loss(
    engine: Any, examples: Sequence[Example], worker: Worker, micro_batch: int, collated: Collate, head: LossHead
) -> float:
    """Mean cross-entropy over the counted tokens of all validation examples; this is a collective call."""
    import torch
    from torch import distributed

    engine.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    # Every worker runs the same number of forward passes: under ZeRO-3 each of them is a collective.
    order += order[-1:] * (-len(order) % worker.world_size)
    counted = torch.zeros(2, dtype=torch.float64, device=worker.device)
    shard = order[worker.rank :: worker.world_size]
    padded = len(order) - len(examples)
    with torch.no_grad():
        for start in range(0, len(shard), micro_batch):
            part = [examples[i] for i in shard[start : start + micro_batch]]
            ends_here = start + micro_batch >= len(shard)
            if ends_here and padded and worker.rank >= worker.world_size - padded:
                part[-1] = Example(part[-1].ids, [IGNORED] * len(part[-1].ids))
            counted[0] += summed_loss(engine, collated(part), head).double()
            counted[1] += sum(example.targets for example in part)
    distributed.all_reduce(counted)
    engine.train()
    return float(counted[0] / counted[1].clamp(min=1))


def _peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU's allocator, or of the whole process on a CPU."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
