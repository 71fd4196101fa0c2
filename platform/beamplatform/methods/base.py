"""What every method is: hyperparameters, a changed model, hooks around the optimizer step, an export.

Methods import torch and PEFT inside their functions: the command line reads hyperparameters without loading either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from beamplatform.methods.lr_schedule import learning_rate_factor
from beamplatform.methods.targets import all_linear, names_layer
from beamplatform.validation import check_numbers, repeated

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from beamlora.fragments import Fragment, Fragments

ExportKind = Literal["adapter", "merged"]

Shapes = Mapping[str, tuple[int, int]]
"""The layers that a method adapts: name -> (d_out, d_in)."""


_LEAST_FRACTION = 1e-9
"""Of the steps of a run; no run has so many that this would be one."""


def _steps_or_fraction(value: int | float) -> int | float:
    if value >= 1 if isinstance(value, int) else _LEAST_FRACTION <= value < 1:
        return value
    raise ValueError(f"must be an integer >= 1 (optimizer steps) or a fraction of all steps in (0, 1), got {value}")


Length = Annotated[int | float, AfterValidator(_steps_or_fraction)]
"""Optimizer steps (an integer), or a fraction of all steps."""


class Hyperparameters(BaseModel):
    """Values every method has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        return check_numbers(cls, values)

    learning_rate: Annotated[float, Field(gt=0, lt=1, description="peak, after warm-up")]
    global_batch: Annotated[int, Field(ge=1)] | None = Field(None, description="instead of training.global_batch")


class AdapterHyperparameters(Hyperparameters):
    """Values every low-rank adapter has; a method's own class adds to them."""

    r: Annotated[int, Field(ge=1, description="rank of each adapter")] = 8
    lora_alpha: Annotated[int, Field(ge=1)] | None = Field(None, description="null = 2 r; scaling is alpha / r")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    @field_validator("target_modules")
    @classmethod
    def _distinct_targets(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, tuple) and (twice := repeated(value)) is not None:
            raise ValueError(f"{twice!r} stands there twice; name each once")
        return value

    @property
    def alpha(self) -> int:
        return self.lora_alpha if self.lora_alpha is not None else 2 * self.r

    @property
    def largest_rank(self) -> int:
        """The largest rank a module has in training; no target layer's smaller side may be below it."""
        return self.r

    @property
    def exported_rank(self) -> int:
        """The rank of the exported adapter."""
        return self.largest_rank

    def targets(self, name: str) -> bool:
        """Whether target_modules names this layer, by its whole name or the end of it; 'all-linear' names none."""
        if isinstance(self.target_modules, str):
            return False
        return any(names_layer(target, name) for target in self.target_modules)

    def lora_arguments(self, base: PreTrainedModel) -> dict[str, Any]:
        """The arguments that PEFT's LoraConfig and its subclasses share, for this base model."""
        targets = all_linear(base) if isinstance(self.target_modules, str) else list(self.target_modules)
        return {
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
        }


class ComponentHyperparameters(AdapterHyperparameters):
    """Of adapters that start as singular components of the weight, which is rid of them: PiSSA, MiLoRA."""

    lora_alpha: Annotated[int, Field(ge=1)] | None = Field(None, description="null = r; scaling is alpha / r")

    @property
    def alpha(self) -> int:
        return self.lora_alpha if self.lora_alpha is not None else self.r

    @property
    def exported_rank(self) -> int:
        # The trained factors and, to be taken off, the first ones: against the original weight.
        return 2 * self.r


@dataclass(frozen=True)
class RunPlan:
    """What a method must know of the run before it starts."""

    total_steps: int
    schedule: Literal["cosine", "linear", "constant"]
    seed: int
    accumulation: int = 1
    warmup: int = 0
    gradient_clipping: float = 0.0
    fused_adamw: bool = False


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
    hyperparameters: ClassVar[type[Hyperparameters]] = AdapterHyperparameters
    export_kind: ClassVar[ExportKind] = "adapter"
    keeps_dropout: ClassVar[bool] = True
    """Whether its layers keep dropout's mask and what it left for the backward pass."""
    writes_weights: ClassVar[bool] = False
    """Whether the weights of adapted layers change, in training or for the export: a tied head then needs its own."""

    def __init__(self, values: Mapping[str, Any], plan: RunPlan) -> None:
        self.values: Any = self.hyperparameters.model_validate(values)
        self.plan = plan
        self.model: Any = None

    def check(self) -> None:  # noqa: B027 - most methods have nothing to check
        """Refuse, before anything starts, a run in which the method could not do its work.

        Raises:
            ValueError: says which hyperparameter, and which values would do.
        """

    def check_layers(self, shapes: Shapes) -> None:
        """As `check`, of what depends on the model's layers.

        Raises:
            ValueError: names the layer, its shape and the largest rank allowed.
        """
        smallest = min(shapes, key=lambda name: min(shapes[name]))
        side = min(shapes[smallest])
        if self.values.largest_rank > side:
            raise ValueError(
                f"rank {self.values.largest_rank} is larger than the smaller side of layer {smallest} "
                f"{list(shapes[smallest])}; allowed: at most {side} (r, or init_r and max_r where a method has them)"
            )

    def extra_memory(self, shapes: Shapes) -> int:
        """Bytes of a worker that the method takes beside parameters, gradients and two moments. An estimate."""
        return 0

    def extra_activations(self, shapes: Shapes) -> int:
        """Values for each token that its layers keep for the backward pass beside their inputs: A x of an adapter."""
        return self.values.largest_rank * len(shapes) if isinstance(self.values, AdapterHyperparameters) else 0

    @abstractmethod
    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        """The trainable model (a PeftModel for adapters); only trainable parameters require gradients."""

    def make_optimizer(self, parameters: list[torch.nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
        """The optimizer of the trainable parameters: AdamW."""
        import torch

        fused = self.plan.fused_adamw or None  # None: PyTorch chooses among the others
        return torch.optim.AdamW(parameters, lr=self.values.learning_rate, weight_decay=weight_decay, fused=fused)

    def learning_rate_factor(self, step: int) -> float:
        """Factor on the peak learning rate for optimizer step `step` (from 0)."""
        plan = self.plan
        return learning_rate_factor(step, total_steps=plan.total_steps, warmup=plan.warmup, schedule=plan.schedule)

    def attach(self, model: torch.nn.Module, optimizer: Any) -> None:
        """Called once when the optimizer exists: torch's own, or DeepSpeed's around it."""
        self.model = model

    def before_step(self) -> None:  # noqa: B027 - a hook
        """After the last backward pass of a step, while gradients still exist; collective on all workers."""

    def after_step(self, step: int) -> dict[str, float]:
        """After optimizer step `step` (from 1); collective on all workers. Returns metrics of this step, if any."""
        return {}

    def trained_parameters(self) -> int:
        """Parameters that are trained now, over all workers."""
        # Under ZeRO-3 a parameter holds only its shard; DeepSpeed keeps the whole size beside it.
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters() if p.requires_grad)

    def state(self) -> MethodState:
        """What a resumed run needs beyond parameters and optimizer state; on this worker."""
        return MethodState()

    def restore(self, values: Mapping[str, Any], tensors: Fragments) -> None:  # noqa: B027 - a hook
        """Go on from a state that was saved by any number of workers; `attach` came before."""

    def export(self, model: Any, folder: Path) -> None:
        """Write the trained model as `export_kind` says, in safetensors; called on one worker with whole parameters."""
        if self.export_kind == "adapter":
            # Without the base model's own head, which PEFT adds where the head is adapted.
            model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
            return
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        model.save_pretrained(str(folder), safe_serialization=True)
