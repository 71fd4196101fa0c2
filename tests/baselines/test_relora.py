"""ReLoRA: what a merge does and leaves alone, and the jagged cosine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from beamplatform.baselines.relora.merging import ReLora
from beamplatform.baselines.relora.moments import keep_drawn, keep_largest
from beamplatform.baselines.relora.schedule import RestartSchedule, equal_cycles

R = 4


def make(restarts: tuple[int, ...] = (3, 6), **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, ReLora]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 24))
    model = get_peft_model(base, LoraConfig(r=R, lora_alpha=6, target_modules=["0", "2"]))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    return model, optimizer, ReLora(model, optimizer, restarts, seed=1, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(32, 24, generator=generator), torch.randn(32, 24, generator=generator)
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    optimizer.step()


def run(model: nn.Module, optimizer: torch.optim.Optimizer, relora: ReLora, first: int, last: int) -> None:
    for step in range(first, last + 1):
        train(model, optimizer, step)
        relora.step()


def layer(model: nn.Module) -> Any:
    return model.get_submodule("base_model.model.0")


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    parameters = [p for name, p in model.named_parameters() if "lora_" in name]
    return [optimizer.state[p][key].clone() for p in parameters for key in ("exp_avg", "exp_avg_sq")]


def test_a_merge_leaves_the_function_as_it_was() -> None:
    model, optimizer, relora = make()
    run(model, optimizer, relora, 1, 2)
    train(model, optimizer, 3)
    x = torch.randn(16, 24)
    before, weight, a = model(x), layer(model).base_layer.weight.clone(), layer(model).lora_A["default"].weight.clone()
    assert relora.step() and relora.merges == 1
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    assert not torch.equal(layer(model).base_layer.weight, weight)
    assert layer(model).lora_B["default"].weight.abs().max() == 0
    bound = 1 / math.sqrt(24)  # Kaiming-uniform, a = sqrt(5)
    fresh = layer(model).lora_A["default"].weight
    assert 0.9 * bound < fresh.abs().max() <= bound and not torch.equal(fresh, a)


@pytest.mark.parametrize(("kept", "prune", "expected"), [("largest", None, 0.1), ("largest", 0.75, 0.25)])
def test_the_largest_moments_are_kept(kept: Any, prune: float | None, expected: float) -> None:
    model, optimizer, relora = make(moments=kept, prune=prune)
    run(model, optimizer, relora, 1, 2)
    train(model, optimizer, 3)
    before = moments(model, optimizer)
    relora.step()
    after = moments(model, optimizer)
    for old, new in zip(before[1::2], after[1::2], strict=True):
        left = new != 0
        assert int(left.sum()) == old.numel() - math.ceil((1 - expected) * old.numel())
        assert torch.equal(new[left], old[left]) and old[left].min() >= old[~left].max()
    for old, new, second in zip(before[::2], after[::2], after[1::2], strict=True):
        cut = old.abs().flatten().sort().values[math.ceil((1 - expected) * old.numel()) - 1]
        assert torch.equal(new, torch.where((old.abs() > cut) & (second != 0), old, 0.0))
        assert (new != 0).any()
    assert all(int(optimizer.state[p]["step"]) == 3 for p in optimizer.state), "Adam's count goes on"


def test_random_moments_are_kept_by_a_seed() -> None:
    """The same elements of both moments, the share that was asked for, drawn anew for every parameter and restart."""

    def at_restart(seed: int) -> list[torch.Tensor]:
        model, optimizer, relora = make(moments="random", prune=0.5)
        relora.seed = seed
        run(model, optimizer, relora, 1, 3)
        return moments(model, optimizer)

    found = at_restart(1)
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert torch.equal(first != 0, second != 0)
    left = torch.cat([moment.flatten() != 0 for moment in found])
    assert 0.45 < left.float().mean() < 0.55
    assert all(torch.equal(a, b) for a, b in zip(found, at_restart(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found, at_restart(2), strict=True))
    assert make(moments="random")[2].prune == 0.999 and make()[2].prune == 0.9
    moment = torch.arange(1.0, 11)
    assert torch.equal(keep_drawn(moment, 0.3, moment / 10 - 0.1), torch.tensor([0, 0, 0, 4.0, 5, 6, 7, 8, 9, 10]))
    assert torch.equal(keep_largest(moment, 0.0), moment) and keep_largest(moment, 1.0).abs().max() == 0


def test_in_bfloat16_a_merge_rounds_once() -> None:
    """Each weight is the nearest to the exact sum: what is too small for it is lost, as in the authors' code."""
    model, optimizer, relora = make()
    layer(model).base_layer.to(torch.bfloat16)
    weight = layer(model).base_layer.weight.detach().float()
    with torch.no_grad():
        layer(model).lora_B["default"].weight.normal_(std=0.01)
    update = layer(model).get_delta_weight("default").float()
    for step in (1, 2, 3):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.param_groups[0]["weight_decay"] = 0.0
        optimizer.step()
        assert relora.step() == (step == 3)
    assert torch.equal(layer(model).base_layer.weight, (weight + update).bfloat16())


def test_the_summed_updates_rank_grows_with_every_merge() -> None:
    model, optimizer, relora = make(restarts=(3, 6))
    first = layer(model).base_layer.weight.clone()
    run(model, optimizer, relora, 1, 8)
    lora = layer(model)
    update = lora.base_layer.weight - first + lora.get_delta_weight("default")
    singular = torch.linalg.svdvals(update)
    assert relora.merges == 2 and int((singular > 1e-4 * singular[0]).sum()) == 3 * R


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit() -> None:
    model, optimizer, relora = make()
    run(model, optimizer, relora, 1, 4)
    saved = {
        "relora": relora.state_dict(),
        "optimizer": {n: dict(optimizer.state[p]) for n, p in model.named_parameters() if p in optimizer.state},
        "adapter": {name: p.clone() for name, p in model.named_parameters() if "lora_" in name},
    }
    saved["optimizer"] = {n: {k: v.clone() for k, v in s.items()} for n, s in saved["optimizer"].items()}
    run(model, optimizer, relora, 5, 8)

    again, other, resumed = make()
    train(again, other, 99)  # so that there is optimizer state to set
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            if name in saved["adapter"]:
                parameter.copy_(saved["adapter"][name])
                other.state[parameter] = {k: v.clone() for k, v in saved["optimizer"][name].items()}
    resumed.load_state_dict(saved["relora"])
    run(again, other, resumed, 5, 8)
    for (name, value), (_, expected) in zip(again.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(value, expected), name


def test_a_base_model_with_merges_takes_no_state() -> None:
    model, optimizer, relora = make()
    run(model, optimizer, relora, 1, 3)
    with pytest.raises(ValueError, match="has merges already"):
        relora.load_state_dict(relora.state_dict())


def test_the_jagged_cosine() -> None:
    """Hand-worked: 0 to 1 in 10 steps; after step 50 and 100 from 0 back to the curve in 5; the curve ends at 0.1."""
    schedule = RestartSchedule(150, (50, 100), warmup=10, restart_warmup=5)

    def curve(step: int) -> float:
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 10) / 140))

    assert [schedule.factor(step) for step in (0, 5, 10)] == [0, 0.5, 1]
    assert schedule.factor(49) == pytest.approx(curve(49))
    assert [schedule.factor(s) for s in range(50, 56)] == pytest.approx(
        [i / 5 * curve(55) for i in range(5)] + [curve(55)]
    )
    assert schedule.factor(100) == 0 and schedule.factor(102) == pytest.approx(0.4 * curve(105))
    assert schedule.factor(80) == pytest.approx(curve(80)) and schedule.factor(149) == pytest.approx(curve(149))
    assert curve(150) == pytest.approx(0.1)


def test_cycles_divide_the_run() -> None:
    assert equal_cycles(100, 25) == (25, 50, 75) and equal_cycles(100, 0.25) == (25, 50, 75)
    assert equal_cycles(100, 1 / 3) == (33, 67)
    for cycle, message in ((30, "25"), (100, "does not fit twice"), (0.4, "0.5, 0.25"), (0.01, "at least 2 steps")):
        with pytest.raises(ValueError, match=message):
            equal_cycles(100, cycle)
