"""What every method is: hyperparameters, a changed model, hooks around the optimizer step, an export.

Methods import torch and PEFT inside their functions: the command line reads hyperparameters without loading either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from beamlora.fragments import Fragment, Fragments

ExportKind = Literal["adapter", "merged"]


class AdapterHyperparameters(BaseModel):
    """Values every low-rank adapter has; a method's own class adds to them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: Annotated[float, Field(gt=0, lt=1, description="peak, after warm-up")]
    r: Annotated[int, Field(ge=1, description="rank of each adapter")] = 8
    lora_alpha: Annotated[int, Field(ge=1)] | None = Field(None, description="null = 2 r; scaling is alpha / r")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    @property
    def alpha(self) -> int:
        return self.lora_alpha if self.lora_alpha is not None else 2 * self.r

    @property
    def largest_rank(self) -> int:
        """The rank the adapter starts with; no target layer's smaller side may be below it."""
        return self.r

    def lora_arguments(self) -> dict[str, Any]:
        """The arguments that PEFT's LoraConfig and its subclasses share."""
        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        return {
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
        }


@dataclass(frozen=True)
class RunPlan:
    """What a method must know of the run before it starts."""

    total_steps: int
    schedule: Literal["cosine", "linear", "constant"]
    seed: int
    accumulation: int = 1


@dataclass(frozen=True)
class MethodState:
    """A method's part of a checkpoint.

    Attributes:
        values: plain values, the same on every worker.
        tensors: whole tensors by name, the same on every worker; saved once, flattened.
        parts: tensors of which each worker holds a stretch: name -> (start, stretch).
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    parts: Mapping[str, Fragment] = field(default_factory=dict)


class Method(ABC):
    """One trial's method. The training loop calls, in this order:

    build and attach once; for every optimizer step before_step, the optimizer's own step and after_step; export at the
    end. state and restore carry the method through a checkpoint.
    """

    name: ClassVar[str]
    hyperparameters: ClassVar[type[AdapterHyperparameters]] = AdapterHyperparameters
    export_kind: ClassVar[ExportKind] = "adapter"

    def __init__(self, values: Mapping[str, Any], plan: RunPlan) -> None:
        self.values: Any = self.hyperparameters.model_validate(values)
        self.plan = plan
        self.model: Any = None

    def check(self) -> None:  # noqa: B027 - most methods have nothing to check
        """Refuse, before anything starts, a run in which the method could not do its work.

        Raises:
            ValueError: says which hyperparameter, and which values would do.
        """

    @abstractmethod
    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        """The trainable model (a PeftModel for adapters); only trainable parameters require gradients."""

    def attach(self, model: torch.nn.Module, optimizer: Any) -> None:
        """Called once when the optimizer exists: torch's own, or DeepSpeed's around it."""
        self.model = model

    def before_step(self) -> None:  # noqa: B027 - a hook
        """After the last backward pass of a step, while gradients still exist; collective on all workers."""

    def after_step(self, step: int) -> dict[str, float]:
        """After optimizer step `step` (from 1); collective on all workers. Returns metrics of this step, if any."""
        return {}

    def state(self) -> MethodState:
        """What a resumed run needs beyond parameters and optimizer state; on this worker."""
        return MethodState()

    def restore(self, values: Mapping[str, Any], tensors: Fragments) -> None:  # noqa: B027 - a hook
        """Go on from a state that was saved by any number of workers; `attach` came before."""

    def export(self, model: Any, folder: Path) -> None:
        """Write the trained model as `export_kind` says, in safetensors; called on one worker with whole parameters."""
        model.save_pretrained(str(folder), safe_serialization=True)
