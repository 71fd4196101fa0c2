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
    schedule.py          when beam steps happen, and p(t)
    rules.py             the numbers: scores, the choice of ranks, the beam step (pure functions)
    config.py layer.py   the PEFT configuration and layer
    fused.py fusable.py  the layer as one operation, and when that may be
    dropout.py           masks that are drawn again instead of kept
    peft_support.py      what PEFT's own functions do with these adapters
    rollback.py          a model is as before where an adapter is refused
    optimizer_check.py   which optimizers a beam step can work on
    optimizer_access.py  reading and writing weights and moments, wherever the optimizer keeps them
    search.py            when to take a snapshot and when to operate
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
    """Import what is asked for: a schedule is planned without torch, a plain training loop needs no Trainer."""
    if name not in _MODULES:
        raise AttributeError(f"module 'beamlora' has no attribute {name!r}")
    return getattr(import_module(f"beamlora.{_MODULES[name]}"), name)


class _WhenPeftIsImported:
    """Imports `beamlora.config` after PEFT, which thereby knows BeamLoRA's adapters in every program that imports both.

    Importing PEFT at once would do as well, but takes seconds, which `beamlora.schedule` alone does not need.
    """

    _looking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Called by whoever imports a module, and by whoever only asks whether it is there."""
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
