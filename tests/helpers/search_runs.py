"""A beam search over a few steps of training, looked at from outside."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from beamlora import BeamSearch

ADAMW = torch.optim.AdamW


def start(model: nn.Module, *, total_steps: int = 30, lr: float = 1e-2, optimizer=ADAMW, **options: object):
    parameters = [p for p in model.parameters() if p.requires_grad]
    trained_by = optimizer(parameters, lr=lr)
    return trained_by, BeamSearch(model, trained_by, total_steps=total_steps, **options)


def record(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """A copy of every adapter parameter and of its optimizer state."""
    copies = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            copies[name] = parameter.detach().clone()
            for key, value in optimizer.state[parameter].items():
                copies[f"{name}/{key}"] = value.clone()
    return copies


def train(model: nn.Module, optimizer: torch.optim.Optimizer, search: BeamSearch, steps: range) -> Iterator[tuple]:
    """Yields (step, state before search.step(), report, state after it)."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(6, 12, generator=generator), torch.randn(6, 7, generator=generator)
        (model(x) - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        before = record(model, optimizer)
        report = search.step()
        yield step, before, report, record(model, optimizer)
