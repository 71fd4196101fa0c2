"""MiLoRA (Wang et al. 2024, arXiv 2406.09044): this project's `beamplatform.baselines.milora`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from beamplatform.hardware import cuda_is_available
from beamplatform.methods.base import ComponentHyperparameters, Method
from beamplatform.methods.components import adapter_factors, save_change
from beamplatform.methods.head import give_head_its_own_weight

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Milora(Method):
    """LoRA that starts as the minor singular components, which are subtracted from the frozen weights."""

    name: ClassVar[str] = "milora"
    writes_weights: ClassVar[bool] = True
    hyperparameters: ClassVar[type[ComponentHyperparameters]] = ComponentHyperparameters

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        from peft import LoraConfig

        from beamplatform.baselines.milora import get_milora_model

        give_head_its_own_weight(base, self.values)
        device = "cuda" if cuda_is_available() else None
        model = get_milora_model(base, LoraConfig(**self.values.lora_arguments(base)), device=device)
        self._first = adapter_factors(model)
        return model

    def export(self, model: Any, folder: Path) -> None:
        save_change(model, self._first, folder)
