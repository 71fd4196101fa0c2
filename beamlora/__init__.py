"""BeamLoRA: low-rank adaptation whose weak ranks are replaced by children of its strong ones.

The method of "BeamLoRA: Beam-Constraint Low-Rank Adaptation" (ACL 2025, arXiv 2502.13604) for any model that
PEFT's LoRA can adapt, with torch's optimizers or DeepSpeed ZeRO:

    config = BeamLoraConfig(r=64, lora_alpha=128, target_modules="all-linear", p_init=0.95, interval=1200)
    model = get_beamlora_model(base_model, config)
    search = BeamSearch(model, optimizer, total_steps=total_steps, seed=0)
    for batch in batches:
        ...
        optimizer.step()
        search.step()
    export_lora(model, "adapter/")

How it is laid out, from the inside out:

    state.py             the tensors a beam step works on
    rules.py             the numbers: scores, p(t), the choice of ranks, the beam step (pure functions)
    config.py layer.py   the PEFT configuration and layer
    optimizer_access.py  reading and writing weights and moments, wherever the optimizer keeps them
    search.py            when to take a snapshot and when to operate
    model.py             building, loading, exporting
    callback.py          the search inside transformers' Trainer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beamlora.config import BeamLoraConfig
from beamlora.model import export_lora, get_beamlora_model, load_beamlora_model
from beamlora.search import BeamReport, BeamSearch

if TYPE_CHECKING:
    from beamlora.callback import BeamLoraCallback

__all__ = [
    "BeamLoraCallback",
    "BeamLoraConfig",
    "BeamReport",
    "BeamSearch",
    "export_lora",
    "get_beamlora_model",
    "load_beamlora_model",
]


def __getattr__(name: str) -> Any:
    """Import the callback only when asked for: a plain training loop does not need transformers' Trainer."""
    if name == "BeamLoraCallback":
        from beamlora.callback import BeamLoraCallback

        return BeamLoraCallback
    raise AttributeError(f"module 'beamlora' has no attribute {name!r}")
