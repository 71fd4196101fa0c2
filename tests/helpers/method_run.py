"""A method in a plain loop, without DeepSpeed and Ray."""

from __future__ import annotations

from typing import Any

import torch

from beamplatform.methods import get_method
from beamplatform.methods.base import Method, RunPlan
from beamplatform.models.loading import load_base

STEPS = 12
IDS = torch.arange(3, 99).reshape(4, 24)
OWN: dict[str, dict[str, Any]] = {
    "beamlora": {"interval": 4},
    "adalora": {"delta_t": 1},
    "relora": {"cycle": 4, "first_warmup": 1, "restart_warmup": 1},
    "increlora": {"interval": 2, "ranks_per_growth": None, "tinit": 0.1},
}
"""Hyperparameters with which each method does in these steps what it is named for."""


def train(name: str, path: str, targets: str | list[str]) -> tuple[Method, Any]:
    """The method after a few steps at a high rate, and its model."""
    torch.manual_seed(0)
    values = {"r": 4, "learning_rate": 0.02, "target_modules": targets, **OWN.get(name, {})}
    method = get_method(name)(values, RunPlan(total_steps=STEPS, schedule="constant", seed=0))
    model: Any = method.build(load_base(path, torch.float32))
    optimizer = method.make_optimizer([p for p in model.parameters() if p.requires_grad], 0.0)
    method.attach(model, optimizer)
    for step in range(1, STEPS + 1):
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        method.before_step()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step)
    return method, model.eval()


def exported_logits(method: Method, base: str, folder: str) -> torch.Tensor:
    """What the export says, loaded by PEFT or transformers alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base if method.export_kind == "adapter" else folder)
    if method.export_kind == "adapter":
        model = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits
