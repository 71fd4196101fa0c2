"""BeamLoRA: low-rank adaptation whose weak ranks are replaced by children of its strong ones.

This package implements "BeamLoRA: Beam-Constraint Low-Rank Adaptation" (ACL 2025, arXiv 2502.13604). It works with
any model that PEFT's LoRA can adapt, and with torch's optimizers or DeepSpeed ZeRO:

    config = BeamLoraConfig(r=64, lora_alpha=128, target_modules="all-linear", p_init=0.95, interval=1200)
    model = get_beamlora_model(base_model, config)
    search = BeamSearch(model, optimizer, total_steps=total_steps, seed=0)
    for batch in batches:
        ...
        optimizer.step()
        search.step()
    export_lora(model, "adapter/")

The main modules, from the basic data types to the integration into Trainer:

    state.py             the tensors that a beam step reads and writes
    schedule.py          when beam steps happen, and the threshold p(t)
    rules.py             pure functions: rank weights, the choice of ranks, the beam step
    config.py layer.py   the PEFT configuration and the adapted linear layer
    fused.py fusable.py  the adapted layer as one autograd operation, and the conditions for using it
    dropout.py           dropout masks that are regenerated from a seed instead of stored
    peft_support.py      registration with PEFT, so that PEFT's own functions handle these adapters
    rollback.py          restoring the model when an adapter is refused
    optimizer_check.py   which optimizers a beam step supports
    optimizer_access.py  reading and writing weights and moments, wherever the optimizer keeps them
    search.py            the beam search: when to take a snapshot and when to run a beam step
    model.py             building, loading, exporting
    callback.py          the search inside transformers' Trainer
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beamlora.callback import BeamLoraCallback
    from beamlora.config import BeamLoraConfig
    from beamlora.model import export_lora, get_beamlora_model, load_beamlora_model
    from beamlora.search import BeamReport, BeamSearch

__all__ = [
    "BeamLoraCallback",
    "BeamLoraConfig",
    "BeamReport",
    "BeamSearch",
    "export_lora",
    "get_beamlora_model",
    "load_beamlora_model",
]

_MODULES = {
    "BeamLoraCallback": "callback", "BeamLoraConfig": "config", "BeamReport": "search", "BeamSearch": "search",
    "export_lora": "model", "get_beamlora_model": "model", "load_beamlora_model": "model",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that planning a schedule needs no torch and a plain loop no Trainer."""
    if name not in _MODULES:
        raise AttributeError(f"module 'beamlora' has no attribute {name!r}")
    return getattr(import_module(f"beamlora.{_MODULES[name]}"), name)


class _WhenPeftIsImported:
    """Import hook that imports `beamlora.config` right after PEFT, to register BeamLoRA's adapters with PEFT.

    Every program that imports both packages can thus load these adapters. Importing PEFT here instead would also
    work, but would add seconds to programs that only need `beamlora.schedule`.
    """

    _looking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find PEFT's module spec and hook its execution. Python also calls this when it only checks for a module."""
        if name != "peft" or self._looking:
            return None
        self._looking = True
        try:
            spec = find_spec(name)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            import_module("beamlora.config")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    import_module("beamlora.config")
else:
    sys.meta_path.insert(0, _WhenPeftIsImported())
