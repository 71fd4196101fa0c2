"""Building, loading and exporting BeamLoRA adapters."""

from __future__ import annotations

import copy
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from beamlora.config import BeamLoraConfig
from beamlora.layer import beam_layers
from beamlora.rollback import unchanged_on_failure
from beamlora.targets import check_targets


def get_beamlora_model(base_model: nn.Module, config: BeamLoraConfig, adapter_name: str = "default") -> PeftModel:
    """Add a new BeamLoRA adapter to `base_model` in place, and return the PEFT model that wraps it.

    PEFT's own get_peft_model, add_adapter and load_adapter also accept a BeamLoraConfig, even if the model already
    has adapters. PEFT's add_weighted_adapter refuses BeamLoRA adapters, since it cannot combine rank scores.

    Raises:
        ValueError: the model already has adapters, or a targeted layer cannot be adapted: its type or its weights
            are not supported, or r exceeds the smaller of its two dimensions. The base model is then unchanged.
    """
    if not isinstance(config, BeamLoraConfig):
        raise ValueError(f"config is a {type(config).__name__}: must be a BeamLoraConfig")
    config = copy.deepcopy(config)  # the model gets its own copy: BeamSearch writes the resolved temperature into it
    adapted = next((name for name, m in base_model.named_modules() if isinstance(m, BaseTunerLayer)), None)
    if adapted is not None:
        raise ValueError(f"the model already has an adapter (in {adapted!r}): unload it, or use its add_adapter")
    with unchanged_on_failure(base_model):
        model = get_peft_model(base_model, config, adapter_name=adapter_name)
    return model


def load_beamlora_model(
    base_model: nn.Module, path: str | Path, adapter_name: str = "default", *, is_trainable: bool = False
) -> PeftModel:
    """Load an adapter and its scores, as written by `save_pretrained`, into `base_model`; return the PEFT model.

    Raises:
        ValueError: `path` holds no BeamLoRA adapter, or the adapter does not fit the base model. The base model is
            then unchanged.
    """
    config = BeamLoraConfig.from_pretrained(str(path))
    config.inference_mode = not is_trainable
    try:
        check_targets(config, base_model)
    except ValueError as error:
        raise ValueError(f"the adapter at {path} does not fit this base model: {error}") from error
    with unchanged_on_failure(base_model):
        model = get_beamlora_model(base_model, config, adapter_name)
        try:
            result = model.load_adapter(str(path), adapter_name, is_trainable=is_trainable)
        except RuntimeError as error:
            raise ValueError(f"the adapter at {path} does not fit this base model: {error}") from error
        if result.missing_keys or result.unexpected_keys:
            raise ValueError(
                f"the adapter at {path} does not fit this base model: "
                f"missing {sorted(result.missing_keys)}, unexpected {sorted(result.unexpected_keys)}"
            )
    return model


def export_lora(model: PeftModel, folder: str | Path, adapter_name: str = "default") -> None:
    """Write the adapter to `folder` as a plain LoRA adapter that PEFT and vLLM load without beamlora.

    Row i of A is multiplied by the rank weight w_i, so the rank and alpha stay the same. The model is not changed.
    In distributed training every worker must call this, because it is collective under ZeRO-3. Only the worker of
    rank 0 writes files.

    Raises:
        ValueError: `adapter_name` does not name a BeamLoRA adapter of this model.
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, BeamLoraConfig):
        raise ValueError(
            f"adapter {adapter_name!r} is not a BeamLoRA adapter; the model has {sorted(model.peft_config)}"
        )
    tensors = lora_state_dict(model, adapter_name)
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    (folder / CONFIG_NAME).write_text(json.dumps(_lora_config(config), indent=2, sort_keys=True))


@torch.no_grad()
def lora_state_dict(model: PeftModel, adapter_name: str = "default") -> dict[str, Tensor]:
    """Return the tensors that `export_lora` writes, on the CPU, keyed by PEFT's names. Collective under ZeRO-3."""
    with _gathered(model, adapter_name):
        tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
        for name, layer in beam_layers(model, adapter_name):
            weight = tensors[f"{name}.lora_A.weight"]
            tensors[f"{name}.lora_A.weight"] = layer.weighted_a(adapter_name).to(weight.dtype)
            del tensors[f"{name}.lora_beam.weight"]
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _lora_config(config: BeamLoraConfig) -> dict[str, object]:
    """Return the content of the exported adapter_config.json. Sets are sorted: equal adapters give equal files."""
    plain = LoraConfig(**{f.name: copy.deepcopy(getattr(config, f.name)) for f in fields(LoraConfig)})
    plain.inference_mode = True
    return {name: sorted(v) if isinstance(v, set) else v for name, v in plain.to_dict().items()}


def _gathered(model: nn.Module, adapter_name: str) -> AbstractContextManager[object]:
    """Return a context in which the adapter's parameters are complete on every worker, even under ZeRO-3."""
    adapter: list[Any] = [p for name, p in model.named_parameters() if f".{adapter_name}" in name]
    # Parameters that the caller has already gathered must not be gathered again.
    sharded = [p for p in adapter if hasattr(p, "ds_id") and p.ds_status.name != "AVAILABLE"]
    if not sharded:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded)
