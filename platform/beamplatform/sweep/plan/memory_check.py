"""Checks whether a trial's workers fit into memory, and finds the smallest change that would make them fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beamplatform.config.sections import ModelSection, TrainingSection
from beamplatform.errors import UserError
from beamplatform.hardware import gpus
from beamplatform.sweep.plan.memory_estimate import MemoryEstimate, computes_on_cpu, estimate, target_shapes

if TYPE_CHECKING:
    from beamplatform.config.trial import Trial
    from beamplatform.sweep.plan.plan import Checked, Plan

GIB = 2**30
_USABLE_GPU = 0.92
_USABLE_HOST = 0.85
"""Usable shares of a GPU's and a host's memory.

The CUDA context and allocator gaps take the rest of a GPU. Other programs and Ray take the rest of a host.
"""


@dataclass(frozen=True)
class WorkerMemory:
    """Memory that one worker can use.

    Attributes:
        size: bytes.
        where: the words for it in an error message, such as "a GPU has".
    """

    size: int
    where: str


def room_here(training: TrainingSection) -> WorkerMemory | None:
    """Memory for one worker on this machine; None if workers run on a cluster or the memory is unknown."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    listed = [gpu["memory"].split()[0] for gpu in gpus()] if training.device != "cpu" else []
    sizes = [int(size) * 2**20 for size in listed if size.isdecimal()]  # "[N/A]" if the GPU uses the host's
    if sizes:
        return room_on_gpu(min(sizes), training)
    if training.device == "gpu":
        return None
    import psutil

    size = int(psutil.virtual_memory().total * _USABLE_HOST)
    workers = training.least_workers
    return WorkerMemory(size // workers, f"this machine's memory has for each of {workers} workers")


def room_on_gpu(size: int, training: TrainingSection) -> WorkerMemory:
    """Memory for one worker on a GPU with `size` bytes."""
    share = training.gpus_per_worker
    return WorkerMemory(int(size * _USABLE_GPU * share), "a GPU has" if share == 1 else f"{share:g} of a GPU has")


def room_on_gpus(training: TrainingSection) -> WorkerMemory:
    """Memory for one worker on one of the cluster's GPUs."""
    import ray

    @ray.remote(num_gpus=1, num_cpus=0)
    def size() -> int:
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)

    return room_on_gpu(ray.get(size.remote()), training)


def half_of(one: Checked) -> WorkerMemory:
    """Memory to aim for when a trial ran out of memory although its estimate fitted.

    It is the estimate minus half of the activations.
    """
    return WorkerMemory(one.memory.total - one.memory.activations // 2, "")


def check_memory(plan: Plan, room: WorkerMemory | None) -> None:
    """Refuse a plan whose largest trial cannot fit.

    Raises:
        UserError: the message says what the trial needs, what is available and the smallest change that would fit.
    """
    if room is None:
        return
    largest = plan.largest
    if largest.memory.total <= room.size:
        return
    raise UserError(
        f"{largest.trial.method} needs about {largest.memory.total / GIB:.1f} GiB for each worker, and {room.where} "
        f"{room.size / GIB:.1f} GiB; {smallest_change(plan, largest, room)}"
    )


def smallest_change(plan: Plan, one: Checked, room: WorkerMemory) -> str:
    """Return in words, as `--set` options, the smallest change of settings with which a trial fits into `room`.

    Changes that leave the results alone are tried first, then those that alter them little. If no single change is
    enough, the changes are combined one after the other until the trial fits.
    """
    together: dict[str, Any] = {}
    for key, value in _changes(one.trial):
        memory = _with(plan, one.trial, {key: value})
        if memory.total <= room.size:
            return _says({key: value}, memory)
    best = one.memory
    for key, value in _changes(one.trial):
        if key == "training.micro_batch" and value != 1:
            continue
        memory = _with(plan, one.trial, together | {key: value})
        if memory.total >= best.total:  # for instance, ZeRO-3 gathers a small model whole
            continue
        together[key], best = value, memory
        if memory.total <= room.size:
            return _says(together, memory)
    return (
        f"no setting of these fits (at least {best.total / GIB:.1f} GiB): a smaller model, a shorter data.max_length, "
        "or more workers with training.zero_stage=3, which share the weights"
    )


def _changes(trial: Trial) -> Iterator[tuple[str, Any]]:
    training = trial.training
    share = training.global_batch // training.least_workers
    for micro_batch in range(training.micro_batch - 1, 0, -1):
        if share % micro_batch == 0:
            yield "training.micro_batch", micro_batch
    if not trial.model.gradient_checkpointing:
        yield "model.gradient_checkpointing", True
    if training.zero_stage < 3 and training.least_workers > 1:
        yield "training.zero_stage", 3
    if training.zero_stage > 0 and not training.offload_optimizer and not computes_on_cpu(training):
        yield "training.offload_optimizer", True
    if trial.model.dtype == "float32":
        yield "model.dtype", "bfloat16"


def _with(plan: Plan, trial: Trial, changes: dict[str, Any]) -> MemoryEstimate:
    def of(section: str) -> dict[str, Any]:
        return {key.partition(".")[2]: value for key, value in changes.items() if key.startswith(f"{section}.")}

    training = TrainingSection.model_validate(trial.training.model_dump() | of("training"))
    model = ModelSection.model_validate(trial.model.model_dump() | of("model"))
    changed = trial.model_copy(update={"training": training, "model": model})
    method = changed.make_method(plan.train_examples)
    return estimate(changed, method, plan.model, target_shapes(plan.model, method.values))


def _says(changes: dict[str, Any], memory: MemoryEstimate) -> str:
    words = " ".join(f"--set {key}={str(value).lower()}" for key, value in changes.items())
    return f"{words} would fit ({memory.total / GIB:.1f} GiB)"
