"""What a beam search refuses when it is built: moments without ranks, and parameters that others have sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from search_runs import start
from torch import nn

from beamlora import BeamSearch
from beamlora.layer import BeamLinear


class Blockwise(torch.optim.Optimizer):
    """Keeps its moments in 8 bits, and small ones whole, as bitsandbytes does."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                small = parameter.numel() < 50
                moment = torch.zeros_like(parameter, dtype=torch.float32 if small else torch.uint8)
                self.state[parameter] = {"step": torch.tensor(1.0), "state1": moment}


def adafactor(parameters: Any) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(parameters, lr=1e-3, relative_step=False)


REFUSED = {
    "transformers' Adafactor": (adafactor, r"Adafactor keeps 'exp_avg_sq_row' as torch\.float32"),
    "torch's Adafactor": (lambda p: torch.optim.Adafactor(p, lr=1e-3), r"Adafactor keeps 'row_var' as torch\.float32"),
    "8 bits": (lambda p: Blockwise(p, lr=1e-3), r"Blockwise keeps 'state1' as torch\.uint8"),
    "after a schedule": (
        lambda p: torch.optim.lr_scheduler.ConstantLR(Blockwise(p, lr=1e-3)).optimizer,
        "Blockwise keeps 'state1'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_optimizer_that_cannot_be_copied_rank_by_rank(name: str, tiny_net) -> None:
    """When the search is built, not at its first snapshot; the optimizer and its parameters are as before."""
    build, why = REFUSED[name]
    model = tiny_net()
    optimizer = build([p for p in model.parameters() if p.requires_grad])
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TypeError, match=why + ".*rank by rank"):
        BeamSearch(model, optimizer, total_steps=30)
    assert not optimizer.state
    assert all(torch.equal(p, old) and p.grad is None for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adagrad", "RMSprop", "NAdam", "Adamax"])
def test_looking_at_an_optimizer_changes_nothing(kind: str, tiny_net) -> None:
    """What it trains is the same to the bit, whether a search was built on it or not."""
    trained = []
    for searched in (False, True):
        model = tiny_net()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = getattr(torch.optim, kind)(parameters, lr=1e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
        if searched:
            BeamSearch(model, optimizer, total_steps=30)
        for step in range(3):
            torch.manual_seed(step)
            model(torch.randn(4, 12)).square().sum().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        trained.append([p.detach().clone() for p in parameters])
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


def test_parameters_that_others_have_sharded(tiny_net) -> None:
    """FSDP1 leaves flat parts of them, FSDP2 and tensor parallelism DTensors."""
    model = tiny_net()
    layer = next(module for module in model.modules() if isinstance(module, BeamLinear))
    layer.lora_A["default"].weight = nn.Parameter(layer.lora_A["default"].weight.detach().flatten()[:7].clone())
    with pytest.raises(ValueError, match=r"layer '0': A is a Parameter of shape \[7\].*FSDP.*DeepSpeed ZeRO"):
        start(model)


def test_sharded_by_fsdp_and_by_torch_s_zero(tiny_net, tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = tiny_net()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"A is a DTensor.*FSDP.*DeepSpeed ZeRO"):
            start(model)
        model = tiny_net().requires_grad_(True)  # as it asks for
        model = FullyShardedDataParallel(model, use_orig_params=False, device_id=torch.device("cpu"))
        with pytest.raises(ValueError, match=r"FSDP.*DeepSpeed ZeRO"):
            BeamSearch(model, torch.optim.AdamW(model.parameters(), lr=1e-3), total_steps=30)
        model = tiny_net()
        parameters = [p for p in model.parameters() if p.requires_grad]
        spread = ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, lr=1e-3)
        with pytest.raises(TypeError, match="ZeroRedundancyOptimizer spreads its moments over the workers"):
            BeamSearch(model, spread, total_steps=30)
    finally:
        dist.destroy_process_group()
