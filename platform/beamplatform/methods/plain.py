"""Writing low-rank factors as a plain LoRA adapter that stock PEFT and vLLM can load."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def save_plain_lora(factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, base: Any, folder: Path) -> None:
    """Write an adapter that computes y = W0 x + B A x, so its lora_alpha equals its rank.

    All modules get the same rank, the largest one in `factors`, because vLLM serves adapters of one rank only. Modules
    of lower rank are padded with zeros.

    Args:
        factors: module name -> (A [rank, d_in], B [d_out, rank]).
        base: the base model; its name goes into the adapter's configuration.
        folder: created if it does not exist.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file
    from torch.nn.functional import pad

    folder.mkdir(parents=True, exist_ok=True)
    rank = max(a.shape[0] for a, _ in factors.values())
    tensors = {}
    for name, (a, b) in factors.items():
        missing = rank - a.shape[0]
        tensors[f"base_model.model.{name}.lora_A.weight"] = pad(a.detach(), (0, 0, 0, missing)).cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = pad(b.detach(), (0, missing)).cpu().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_target_modules(factors, base),
        base_model_name_or_path=base.config.name_or_path,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    config.save_pretrained(str(folder))


def _target_modules(names: Collection[str], base: Any) -> list[str]:
    """Return the last parts of the layers' names if no other layer shares them, else the whole names."""
    last_parts = {name.rpartition(".")[2] for name in names}
    # PEFT's wrapper has the name of the layer that it adapts; the base layer and the factors are its submodules.
    matching = {name for name, _ in base.named_modules() if name.rpartition(".")[2] in last_parts}
    return sorted(last_parts if matching == set(names) else names)
