"""Saving and loading a run in mid-training: DeepSpeed's shards, the method's state, each worker's generator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.training.loop import Progress

if TYPE_CHECKING:
    from beamplatform.methods.base import Method

_ENGINE = "engine"


def save_checkpoint(folder: Path, engine: Any, method: Method, progress: Progress, worker: int) -> None:
    """Write this worker's part into `folder`; a collective. Frozen weights are left out.

    Ray Train joins the workers' folders into one checkpoint, so each worker writes files of its own names.
    """
    import torch

    engine.save_checkpoint(str(folder), tag=_ENGINE, exclude_frozen_parameters=True)
    torch.save(_generators(), folder / f"generators-{worker}.pt")
    if worker == 0:
        torch.save({"step": progress.step, "method": method.state_dict()}, folder / "run.pt")


def load_checkpoint(folder: Path, engine: Any, method: Method, worker: int) -> Progress:
    """Restore what `save_checkpoint` wrote, for the same number of workers."""
    import torch

    # Frozen weights are not in the checkpoint, so the module's state is incomplete by design.
    engine.load_checkpoint(str(folder), tag=_ENGINE, load_module_strict=False)
    run = torch.load(folder / "run.pt", weights_only=True)
    method.load_state_dict(run["method"])
    generators = torch.load(folder / f"generators-{worker}.pt", weights_only=True)
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"])
    return Progress(step=run["step"])


def _generators() -> dict[str, Any]:
    """The state of every generator that dropout draws from."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
