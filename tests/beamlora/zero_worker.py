"""One DeepSpeed worker of test_deepspeed.py: trains through a beam step and writes down what it saw.

    python zero_worker.py RANK WORLD PORT FOLDER CASE...

A case is STAGE-DTYPE-ACCUMULATION-OPTION: micro-batches per step; and "sharded" everything, "persistent" small
parameters whole on every worker (ZeRO-3), "offload" of the optimizer to the CPU, or "disagree": a seed of its own for
every worker. For each case it writes FOLDER/CASE-RANK.pt with full states ({parameter: {value, exp_avg, exp_avg_sq}})
around the beam step.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beamlora import BeamLoraConfig, BeamSearch, get_beamlora_model
from beamlora.model import lora_state_dict
from beamlora.optimizer_access import OptimizerAccess, optimizer_access

STEPS, BEAM_STEP, SNAPSHOT_STEP = 5, 4, 2
LAST = 13
"""Two more beam steps, at 8 and 12, of which the choice of ranks is kept."""


def build() -> nn.Module:
    """A net whose A, B and scores of rank 5 do not divide evenly among two workers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7))
    config = BeamLoraConfig(r=5, lora_alpha=10, target_modules=["0", "2"], p_init=0.5, interval=4)
    return get_beamlora_model(net, config)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs [24, 12] and targets [24, 7] of the global batch of one step."""
    generator = torch.Generator().manual_seed(100 * step)
    return torch.randn(24, 12, generator=generator), torch.randn(24, 7, generator=generator)


def read(access: OptimizerAccess, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    states = {name: access.read(p) for name, p in model.named_parameters() if p.requires_grad}
    return {name: {"value": state.value, **state.moments} for name, state in states.items()}


def live(model: nn.Module) -> dict[str, Tensor]:
    """The weights that the forward pass uses."""
    import deepspeed

    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with deepspeed.zero.GatheredParameters([p for p in parameters.values() if hasattr(p, "ds_id")]):
        return {name: p.detach().clone() for name, p in parameters.items()}


def run(case: str, rank: int, world: int) -> dict[str, object]:
    import deepspeed

    # A collective in shared memory that DeepSpeed compiles for two minutes of processor time; gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    stage, dtype_name, accumulation_text, option = case.split("-")
    dtype, accumulation = getattr(torch, dtype_name), int(accumulation_text)
    model = build()
    parameters = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(parameters, lr=1e-2),
        model_parameters=parameters,
        config={
            "train_micro_batch_size_per_gpu": 24 // (world * accumulation),
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": {
                "stage": int(stage),
                "stage3_param_persistence_threshold": 100_000 if option == "persistent" else 0,
                "offload_optimizer": {"device": "cpu" if option == "offload" else "none"},
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": dtype == torch.bfloat16},
        },
    )
    search = BeamSearch(engine, engine.optimizer, total_steps=18, seed=3 + 2 * rank * (option == "disagree"))
    access = optimizer_access(engine.optimizer)
    seen: dict[str, object] = {"initial": read(access, model), "optimizer": type(engine.optimizer).__name__}
    probe = batch(0)[0].to(dtype)
    history = []
    for step in range(1, LAST + 1):
        x, y = (tensor[rank::world].to(dtype).chunk(accumulation) for tensor in batch(step))
        for number in range(accumulation):
            engine.backward((engine(x[number]) - y[number]).square().mean())
            if step == STEPS and number == accumulation - 1:
                seen["gradient"] = {n: access.gradient(p) for n, p in model.named_parameters() if p.requires_grad}
            engine.step()
        if step == SNAPSHOT_STEP:
            seen["snapshot"] = read(access, model)
        if step == BEAM_STEP:
            seen["before"] = read(access, model)
            with torch.no_grad():
                seen["output before"] = engine(probe)
        try:
            with wire() as sent:
                report = search.step()
        except RuntimeError as error:
            return seen | {"error": str(error), "after": read(access, model)}
        if step == SNAPSHOT_STEP:
            seen["snapshot part"] = search.state_dict()["snapshot"]
        if report is not None:
            history.append(report.operated)
        if step == BEAM_STEP:
            assert report is not None
            seen["sent"] = sent
            seen["operated"] = report.operated
            seen["bytes moved"] = report.bytes_moved
            seen["after"] = read(access, model)
            with torch.no_grad():
                seen["output after"] = engine(probe)
            seen["live"] = live(model)
            seen["export"] = lora_state_dict(model)
        if step == STEPS:
            seen["end"] = read(access, model)
    return seen | {"history": history}


@contextlib.contextmanager
def wire() -> Iterator[dict[str, int]]:
    """Bytes of the tensors that this worker hands to collectives, by the name of the collective."""
    from torch import distributed

    sent: Counter[str] = Counter()
    names = [name for name in dir(distributed) if name.startswith(("all_", "broadcast", "reduce", "gather", "scatter"))]
    real = {name: getattr(distributed, name) for name in names if callable(getattr(distributed, name))}

    def counted(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            flat = [*arguments, *options.values()]
            tensors = [t for part in flat for t in (part if isinstance(part, list) else [part])]
            sent[name] += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
            return real[name](*arguments, **options)

        return call

    for name in real:
        setattr(distributed, name, counted(name))
    try:
        yield sent
    finally:
        for name, function in real.items():
            setattr(distributed, name, function)


def main() -> None:
    rank, world, port, folder, *cases = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    for case in cases:
        torch.save(run(case, int(rank), int(world)), Path(folder) / f"{case}-{rank}.pt")
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
    # Not the interpreter's own end: threads of torch.distributed that still run make that abort now and then.
    sys.stdout.flush()
    os._exit(0)
