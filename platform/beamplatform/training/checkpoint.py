"""Saving and restoring a run in mid-training: its whole state except the frozen base weights.

Every worker writes the shards of weights and moments that its optimizer holds, so nothing has to be gathered. The run
can resume with any number of workers, each of which reads the shards that its own optimizer then holds. Checkpoints are
taken between optimizer steps, never within gradient accumulation. (DeepSpeed's own checkpoints are pickles, and can be
read only by the same number of workers.)
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from beamplatform.training.checkpoint_store import CheckpointStore, describe
from beamplatform.training.loop import Progress, Worker

if TYPE_CHECKING:
    from torch import Tensor, nn

    from beamlora.optimizer_access import OptimizerAccess
    from beamplatform.methods.base import Method

log = logging.getLogger(__name__)


def save_checkpoint(store: CheckpointStore, engine: Any, method: Method, progress: Progress, worker: Worker) -> None:
    """Write the checkpoint of step `progress.step`.

    This is a collective call: it succeeds or fails on all workers alike.

    Raises:
        OSError: this worker or another one could not write its files.
    """
    from torch import distributed

    written: dict[str, Any] = {}
    failure = None
    try:
        with store.writing(progress.step) as folder:
            for path in _write(folder, engine, method, progress, worker):
                written[path.name] = describe(path)
    except Exception as error:
        failure = (_error_number(error), str(error))
    gathered: list[Any] = [None] * worker.world_size
    distributed.all_gather_object(gathered, (written, failure))
    failures = [failure for _, failure in gathered if failure]
    if not failures and worker.rank == 0:
        try:
            store.commit(progress.step, {name: entry for files, _ in gathered for name, entry in files.items()})
        except OSError as error:
            failures = [(error.errno, str(error))]
    outcome = [failures]
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[0]:
        code, why = outcome[0][0]
        text = f"the checkpoint of step {progress.step} cannot be written to {store.location}: {why}"
        raise OSError(code, text) if code is not None else OSError(text)


def load_checkpoint(store: CheckpointStore, engine: Any, method: Method, worker: Worker, seed: int) -> Progress | None:
    """Restore the newest intact checkpoint, which any number of workers may have saved.

    This is a collective call. Returns the progress of the saved run, or None if there is no checkpoint.

    Raises:
        ValueError: the checkpoint belongs to a run with other settings.
    """
    from torch import distributed

    chosen = [store.newest() if worker.rank == 0 else None]
    distributed.broadcast_object_list(chosen, src=0)
    if chosen[0] is None:
        return None
    with store.open(chosen[0]) as folder:
        return _read(folder, engine, method, worker, seed)


def _write(folder: Path, engine: Any, method: Method, progress: Progress, worker: Worker) -> Iterator[Path]:
    from beamlora.fragments import write_fragments
    from beamlora.optimizer_access import optimizer_access

    access = optimizer_access(engine.optimizer)
    method_state = method.state()
    fragments: dict[str, Any] = {}
    if access.sharded or worker.rank == 0:  # otherwise all workers hold the same values
        fragments |= {f"method/{name}": fragment for name, fragment in method_state.parts.items()}
        for name, parameter in _trained(engine.module):
            shard = access.shard(parameter)
            fragments |= {f"parameter/{name}/{e}": (shard.start, tensor) for e, tensor in shard.tensors().items()}
    if worker.rank == 0:
        fragments |= {f"method/{name}": (0, tensor.flatten()) for name, tensor in method_state.tensors.items()}
    path = folder / f"worker-{worker.rank:05}.safetensors"
    write_fragments(path, fragments)
    yield path
    path = folder / f"worker-{worker.rank:05}.json"
    path.write_text(json.dumps({"generators": _generators(worker), "meter": progress.meter.state()}), encoding="utf-8")
    yield path
    if worker.rank == 0:
        path = folder / "state.json"
        state = {
            "step": progress.step,
            "workers": worker.world_size,
            "rows": progress.rows,
            "method": method_state.values,
            "optimizer": _step_counts(access),
        }
        path.write_text(json.dumps(state), encoding="utf-8")
        yield path


def _read(folder: Path, engine: Any, method: Method, worker: Worker, seed: int) -> Progress:
    import torch

    from beamlora.fragments import Fragments
    from beamlora.optimizer_access import optimizer_access

    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    fragments = Fragments.from_files(sorted(folder.glob("worker-*.safetensors")))
    access = optimizer_access(engine.optimizer)
    _make_optimizer_state(access, fragments, state["optimizer"])
    with torch.no_grad():
        for name, parameter in _trained(engine.module):
            shard = access.shard(parameter)
            for entry, tensor in shard.tensors().items():
                tensor.copy_(fragments.read(f"parameter/{name}/{entry}", shard.start, tensor.numel()))
            whole = fragments.whole(f"parameter/{name}/value")
            access.refresh(parameter, whole)
    method.restore(state["method"], fragments.below("method/"))
    engine.global_steps = state["step"]
    progress = Progress(step=state["step"], rows=[(step, metrics) for step, metrics in state["rows"]])
    workers = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("worker-*.json"))]
    if state["workers"] == worker.world_size:
        progress.meter.restore(workers[worker.rank]["meter"])
        _set_generators(workers[worker.rank]["generators"], worker)
        return progress
    log.warning("step %d was saved by %d workers, now there are %d", progress.step, state["workers"], worker.world_size)
    if worker.rank == 0:
        for saved in workers:
            progress.meter.restore(saved["meter"])
    # The saved random states cannot be divided among another number of workers, so each worker seeds a new one.
    torch.manual_seed(random.Random(f"resumed:{seed}:{progress.step}:{worker.rank}").getrandbits(63))
    return progress


def _error_number(error: Exception) -> int | None:
    """The error's errno, or None; an error of safetensors has the number only in its text."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else getattr(error, "errno", None)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _step_counts(access: OptimizerAccess) -> dict[str, float]:
    """The optimizer's scalar state by name (Adam: `step`), which must be the same for all its tensors."""
    import torch

    counts: dict[str, float] = {}
    for tensor, state in access.stretches():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == tensor.shape and value.ndim:
                continue
            if counts.setdefault(name, float(value)) != float(value):
                raise ValueError(
                    f"the optimizer's {name} differs between parameters: {counts[name]} and {float(value)}"
                )
    return counts


def _make_optimizer_state(access: OptimizerAccess, fragments: Any, counts: dict[str, float]) -> None:
    """Give a fresh optimizer the state it has after a step, with moments of zero to read a checkpoint into."""
    import torch

    entries = {name.rpartition("/")[2] for name in fragments.below("parameter/").names} - {"value"}
    for tensor, state in access.stretches():
        state.clear()
        state |= {name: torch.tensor(count, dtype=torch.float32) for name, count in counts.items()}
        state |= {name: torch.zeros_like(tensor, requires_grad=False) for name in sorted(entries)}


def _generators(worker: Worker) -> dict[str, Any]:
    """The state of every random generator of this process: torch (dropout), its GPU, Python and NumPy."""
    import numpy
    import torch

    kind, keys, *rest = cast("tuple[str, Any, int, int, float]", numpy.random.get_state(legacy=True))
    states = {
        "torch": _hex(torch.get_rng_state()),
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }
    if worker.device.type == "cuda":
        states["cuda"] = _hex(torch.cuda.get_rng_state(worker.device))
    return states


def _set_generators(states: dict[str, Any], worker: Worker) -> None:
    import numpy
    import torch

    torch.set_rng_state(_bytes(states["torch"]))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    if worker.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(_bytes(states["cuda"]), worker.device)


def _hex(state: Tensor) -> str:
    return bytes(state.numpy()).hex()


def _bytes(text: str) -> Tensor:
    import torch

    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
