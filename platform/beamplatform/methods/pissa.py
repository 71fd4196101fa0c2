"""PiSSA (Meng et al. 2024, arXiv 2404.02948): PEFT's implementation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from beamplatform.methods.base import ComponentHyperparameters, Method
from beamplatform.methods.components import adapter_factors, save_change
from beamplatform.methods.head import give_head_its_own_weight

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class PissaHyperparameters(ComponentHyperparameters):
    """The defaults of alpha and dropout are the paper's (Section 5): alpha = r, no dropout."""

    # The adapter starts as a part of the model's own weight, and dropout would remove pieces of it.
    lora_dropout: Annotated[float, Field(ge=0, le=0)] = 0.0
    svd_iterations: Annotated[int, Field(ge=1)] | None = Field(
        None, description="iterations of a randomised SVD, much faster (the authors use 16); null = exact SVD"
    )


class Pissa(Method):
    """LoRA that starts as the principal singular components, which are subtracted from the frozen weights."""

    name: ClassVar[str] = "pissa"
    writes_weights: ClassVar[bool] = True
    hyperparameters: ClassVar[type[PissaHyperparameters]] = PissaHyperparameters

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        from peft import LoraConfig, get_peft_model

        give_head_its_own_weight(base, self.values)
        iterations = self.values.svd_iterations
        start = "pissa" if iterations is None else f"pissa_niter_{iterations}"
        model = get_peft_model(base, LoraConfig(init_lora_weights=start, **self.values.lora_arguments(base)))
        self._first = adapter_factors(model)
        return model

    def export(self, model: Any, folder: Path) -> None:
        save_change(model, self._first, folder)
