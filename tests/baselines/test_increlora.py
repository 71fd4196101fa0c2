"""IncreLoRA: the layer's formula, importance against autograd, growth to the target, elements with their own Adam."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from beamplatform.baselines.increlora.growth import RankGrowth
from beamplatform.baselines.increlora.layer import (
    IncreLoraConfig,
    folded_factors,
    get_increlora_model,
    increlora_layers,
)
from beamplatform.baselines.increlora.optimizer import GrowingAdamW
from beamplatform.baselines.increlora.plan import GrowthPlan, choose_modules, plan_growth

MODULES, CAPACITY, ALPHA = 3, 6, 5


def make(plan: GrowthPlan | None = None, **options: Any) -> tuple[nn.Module, GrowingAdamW, RankGrowth]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8))
    config = IncreLoraConfig(r=CAPACITY, lora_alpha=ALPHA, target_modules=["0", "2", "4"], init_r=1)
    model = get_increlora_model(base, config)  # type: ignore[arg-type]
    optimizer = GrowingAdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, new_warmup=3)
    plan = plan or plan_growth(total_steps=20, modules=MODULES, target_rank=4, warmup=2, interval=2, ranks=1, top=2)
    return model, optimizer, RankGrowth(model, optimizer, plan, **options)


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(32, 8, generator=generator), torch.randn(32, 8, generator=generator)


def train(model: nn.Module, optimizer: GrowingAdamW, growth: RankGrowth, step: int) -> dict[str, int]:
    x, y = data(step)
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    growth.before_step()
    optimizer.step()
    return growth.step()


def test_the_layers_formula_and_its_merge() -> None:
    model, *_ = make()
    layer = increlora_layers(model)["0"]
    a, b, e = layer.parameters_of("default")
    assert torch.equal(e, torch.tensor([0.0, 1e-5, 0, 0, 0, 0])), "one rank, one in reserve"
    assert a.std().item() == pytest.approx(0.02, rel=0.3) and b.std().item() == pytest.approx(0.02, rel=0.3)
    with torch.no_grad():
        e.copy_(torch.tensor([0.5, 2.0, -1.0, 0, 0, 0]))
        layer.ranks["default"] = 3
    x = torch.randn(4, 8)
    expected = layer.base_layer(x) + ALPHA / (3 + 1e-5) * ((x @ a.T) * e) @ b.T
    torch.testing.assert_close(layer(x), expected)
    folded_a, folded_b = folded_factors(model)["0"]
    assert folded_a.shape == (3, 8) and folded_b.shape == (12, 3)
    torch.testing.assert_close(layer.base_layer(x) + x @ folded_a.T @ folded_b.T, expected)
    model.merge_adapter()
    torch.testing.assert_close(layer.base_layer(x), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_importance_is_that_of_a_dense_update(micro_batches: int) -> None:
    """sum |dW * grad dW| / sqrt(numel), the gradient taken by autograd on a dense dW; twice smoothed (Eq. 5)."""
    model, optimizer, growth = make(accumulation=micro_batches, regulariser=0.0)
    with torch.no_grad():
        for layer in increlora_layers(model).values():
            layer.parameters_of("default")[2][0] = 0.7
    growth.load_state_dict(growth.state_dict())  # looks at the weights again
    averages = {name: (0.0, 0.0) for name in increlora_layers(model)}
    for step in (1, 2):
        x, y = data(step)
        updates = {n: layer.get_delta_weight("default").detach() for n, layer in increlora_layers(model).items()}
        for update in updates.values():
            update.requires_grad_()
        hidden = x
        for i, module in enumerate(model.base_model.model):
            name = str(i)
            if name in updates:
                base = module.base_layer
                hidden = nn.functional.linear(hidden, base.weight + updates[name], base.bias)
            else:
                hidden = module(hidden)
        (hidden - y).square().mean().backward()
        for name, update in updates.items():
            assert update.grad is not None
            s = float((update.detach() * update.grad).abs().sum()) / math.sqrt(update.numel())
            importance = 0.85 * averages[name][0] + 0.15 * s
            averages[name] = (importance, 0.85 * averages[name][1] + 0.15 * abs(s - importance))
        optimizer.zero_grad()
        for part, wanted in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            ((model(part) - wanted).square().mean() / micro_batches).backward()
        growth.before_step()
        optimizer.step()
        growth.step()
    found = growth.state_dict()["averages"]
    for name, expected in averages.items():
        assert found[name] == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_regulariser_is_that_of_the_trained_ranks(micro_batches: int) -> None:
    """0.1 (|A A^T - I| + |B^T B - I|), averaged over modules, of the module's own ranks and its reserve."""
    model, optimizer, _ = make(regulariser=0.1, accumulation=micro_batches)
    x, y = data(1)
    for part, wanted in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
        ((model(part) - wanted).square().mean() / micro_batches).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer.zero_grad()
    plain, *_ = make(regulariser=0.0)
    loss = (plain(x) - y).square().mean()
    for layer in increlora_layers(plain).values():
        a, b, _ = layer.parameters_of("default")
        for factor in (a[:2], b[:, :2].T):
            loss = loss + 0.1 / MODULES * torch.linalg.norm(factor @ factor.T - torch.eye(2))
    loss.backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_ranks_follow_the_schedule_to_the_target_and_no_further() -> None:
    """12 ranks for 3 modules: 3, then 2 more each time, at the fifth time only the one that is left."""
    model, optimizer, growth = make()
    totals = []
    for step in range(1, 21):
        gains = train(model, optimizer, growth, step)
        assert not gains or step in (2, 4, 6, 8, 10)
        totals.append(sum(growth.ranks.values()))
    assert totals[::2] == [3, 5, 7, 9, 11, 12, 12, 12, 12, 12] and totals[1:10:2] == [5, 7, 9, 11, 12]
    for name, layer in increlora_layers(model).items():
        e, n = layer.parameters_of("default")[2], growth.ranks[name]
        assert (e[n:] == 0).all(), "nothing in reserve at the end"
        assert (e[:n] != 0).all()


def test_reserve_ranks_train_ahead_and_waiting_ranks_do_not_move() -> None:
    model, optimizer, growth = make()
    before = {
        n: [p.detach().clone() for p in layer.parameters_of("default")] for n, layer in increlora_layers(model).items()
    }
    train(model, optimizer, growth, 1)
    for name, layer in increlora_layers(model).items():
        (a, b, e), (a0, b0, e0) = layer.parameters_of("default"), before[name]
        assert e[0] != e0[0] and torch.equal(e[1:], e0[1:])
        assert not torch.equal(a[1], a0[1]) and not torch.equal(b[:, 1], b0[:, 1]), "the reserve trains"
        assert torch.equal(a[2:], a0[2:]) and torch.equal(b[:, 2:], b0[:, 2:]), "those in waiting do not"
    gains = train(model, optimizer, growth, 2)
    assert len(gains) == 2 and set(gains.values()) == {1}
    for name, layer in increlora_layers(model).items():
        n = growth.ranks[name]
        e = layer.parameters_of("default")[2]
        assert n == 1 + gains.get(name, 0) and e[n].item() == pytest.approx(1e-5) and (e[n + 1 :] == 0).all()


def test_modules_are_chosen_by_score_while_they_have_room() -> None:
    scores, ranks, capacity = {"a": 1.0, "b": 3.0, "c": 2.0}, {"a": 1, "b": 1, "c": 1}, {"a": 8, "b": 1, "c": 2}
    plan = GrowthPlan(steps=(1,), top=2, ranks=2, target=100)
    assert choose_modules(scores, ranks, capacity, plan) == {"c": 1, "a": 2}, "b is full, c nearly"
    assert choose_modules(scores, ranks, capacity, GrowthPlan((1,), 2, 2, 5)) == {"c": 1, "a": 1}, "two are left"
    assert choose_modules(scores, ranks, capacity, GrowthPlan((1,), 2, 2, 3)) == {}


def test_full_modules_do_not_keep_the_target_from_being_reached() -> None:
    plan = plan_growth(total_steps=4, modules=MODULES, target_rank=CAPACITY - 1, ranks=4, top=1, until=3)
    model, optimizer, growth = make(plan)
    for step in range(1, 5):
        train(model, optimizer, growth, step)
    assert sum(growth.ranks.values()) == plan.target == MODULES * (CAPACITY - 1)


def test_a_plan_says_what_would_do() -> None:
    length = {"total_steps": 100, "modules": 10, "warmup": 10, "interval": 10, "until": 50}
    plan = plan_growth(**length, target_rank=8)  # 70 ranks in 5 growths: 4 each, half of 8, for 4 modules
    assert plan == GrowthPlan((10, 20, 30, 40, 50), top=4, ranks=4, target=80)
    with pytest.raises(
        ValueError, match=r"only 60 of 80 ranks \(8 for each of 10 modules\) .* by 1 rank\(s\); add more ranks each"
    ):
        plan_growth(**length, target_rank=8, ranks=1)
    with pytest.raises(ValueError, match=r"only 30 of 80 ranks .* of 2 modules by 2 rank\(s\); top_h = 7 would do"):
        plan_growth(**length, target_rank=8, ranks=2, top=2)
    with pytest.raises(ValueError, match=r"only 60 of 80 ranks .* of 10 modules by 1"):
        plan_growth(**length, target_rank=8, ranks=1, top=40)
    with pytest.raises(ValueError, match=r"the target rank .1. must be above the first one .1."):
        plan_growth(total_steps=100, modules=10, target_rank=1)
    with pytest.raises(ValueError, match="no rank would ever be added: growth would be from step 60 to step 50"):
        plan_growth(total_steps=100, modules=10, target_rank=8, warmup=60, until=50)


def test_adam_of_elements_that_are_there_from_the_start_is_torchs() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(50), [torch.randn(50) for _ in range(20)]
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    growing = GrowingAdamW([one], lr=0.01, weight_decay=0.1, new_warmup=5)
    torchs = torch.optim.AdamW([other], lr=0.01, weight_decay=0.1)
    for gradient in gradients:
        one.grad, other.grad = gradient.clone(), gradient.clone()
        growing.step()
        torchs.step()
    torch.testing.assert_close(one, other)


def test_steps_are_counted_beyond_what_bfloat16_can() -> None:
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = GrowingAdamW([parameter], lr=1e-3)
    for _ in range(300):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert optimizer.state[parameter]["age"].tolist() == [300.0] * 4 and parameter.dtype == torch.bfloat16


def test_an_element_that_starts_later_is_as_if_it_were_made_then() -> None:
    """With bias correction from its own first step, and a warm-up: 1/4, 2/4, 3/4 of the rate, then all of it."""
    torch.manual_seed(0)
    start, gradients = torch.randn(6), [torch.randn(6) for _ in range(30)]
    late = torch.tensor([False, False, False, True, True, True])
    both, fresh = nn.Parameter(start.clone()), nn.Parameter(start[late].clone())
    growing = GrowingAdamW([both], lr=0.01, weight_decay=0.1, new_warmup=4)
    torchs = torch.optim.AdamW([fresh], lr=0.01, weight_decay=0.1)
    for step, gradient in enumerate(gradients, start=1):
        both.grad = torch.where(late & torch.tensor(step <= 10), 0.0, gradient)
        growing.step()
        if step == 10:
            assert torch.equal(both[late], start[late]), "no weight decay before it starts"
        if step > 10:
            torchs.param_groups[0]["lr"] = 0.01 * min(1, (step - 10) / 4)
            fresh.grad = gradient[late]
            torchs.step()
    torch.testing.assert_close(both[late], fresh)
