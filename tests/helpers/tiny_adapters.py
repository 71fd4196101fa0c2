"""Adapters that PEFT makes on the shipped model, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from beamplatform.world import tiny_model_path


def adapter_on_tiny(folder: Path, seed: int) -> Any:
    """Write a LoRA adapter of rank 4 to `folder`; the model with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_path()), config)
    model.save_pretrained(folder)
    return model


def two_adapters_and_a_merged_model(folder: Path) -> tuple[list[Path], Path]:
    """The adapters' folders, and that of the second one's merged model."""
    adapters = [folder / f"adapter{seed}" for seed in (1, 2)]
    models = [adapter_on_tiny(adapter, seed) for seed, adapter in enumerate(adapters, start=1)]
    models[1].merge_and_unload().save_pretrained(folder / "merged")
    return adapters, folder / "merged"
