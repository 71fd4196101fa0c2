"""The base class of all methods: hyperparameters, a trainable model, hooks around the optimizer step, and an export.

Methods import torch and PEFT inside their functions, so that the command line reads hyperparameters without loading
either.
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
"""The shapes of the layers that a method adapts: name -> (d_out, d_in)."""


_LEAST_FRACTION = 1e-9
"""The smallest fraction of a run's steps that is accepted. No run is so long that this would be a whole step."""


def _steps_or_fraction(value: int | float) -> int | float:
    if value >= 1 if isinstance(value, int) else _LEAST_FRACTION <= value < 1:
        return value
    raise ValueError(f"must be an integer >= 1 (optimizer steps) or a fraction of all steps in (0, 1), got {value}")


Length = Annotated[int | float, AfterValidator(_steps_or_fraction)]
"""A number of optimizer steps (an integer) or a fraction of all steps (a float)."""


class Hyperparameters(BaseModel):
    """The hyperparameters that every method has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        return check_numbers(cls, values)

    learning_rate: Annotated[float, Field(gt=0, lt=1, description="peak, after warm-up")]
    global_batch: Annotated[int, Field(ge=1)] | None = Field(None, description="instead of training.global_batch")


class AdapterHyperparameters(Hyperparameters):
    """The hyperparameters that every low-rank adapter has. A method's own subclass adds more."""

    r: Annotated[int, Field(ge=1, description="rank of each adapter")] = 8
    lora_alpha: Annotated[int, Field(ge=1)] | None = Field(None, description="null = 2 r; scaling is alpha / r")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    @field_validator("target_modules")
    @classmethod
    def _distinct_targets(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, tuple) and (twice := repeated(value)) is not None:
            raise ValueError(f"{twice!r} is listed twice; name each once")
        return value

    @property
    def alpha(self) -> int:
        return self.lora_alpha if self.lora_alpha is not None else 2 * self.r

    @property
    def largest_rank(self) -> int:
        """The largest rank that a module has in training. Both sides of every target layer must be at least this."""
        return self.r

    @property
    def exported_rank(self) -> int:
        """The rank of the exported adapter."""
        return self.largest_rank

    def targets(self, name: str) -> bool:
        """Whether target_modules names this layer (see `names_layer`). Always False for 'all-linear'."""
        if isinstance(self.target_modules, str):
            return False
        return any(names_layer(target, name) for target in self.target_modules)

    def lora_arguments(self, base: PreTrainedModel) -> dict[str, Any]:
        """Return this base model's arguments for PEFT's LoraConfig. Its subclasses take the same arguments."""
        targets = all_linear(base) if isinstance(self.target_modules, str) else list(self.target_modules)
        return {
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
        }


class ComponentHyperparameters(AdapterHyperparameters):
    """For adapters initialised from singular components that are subtracted from the frozen weight (PiSSA, MiLoRA)."""

    lora_alpha: Annotated[int, Field(ge=1)] | None = Field(None, description="null = r; scaling is alpha / r")

    @property
    def alpha(self) -> int:
        return self.lora_alpha if self.lora_alpha is not None else self.r

    @property
    def exported_rank(self) -> int:
        # The exported adapter belongs to the original weight. It holds the trained factors and the negated first ones.
        return 2 * self.r


@dataclass(frozen=True)
class RunPlan:
    """What a method must know about a run before the run starts."""

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
        tensors: whole tensors by name, the same on every worker. The checkpoint holds one flattened copy.
        parts: this worker's slices of flattened, sharded tensors: name -> (start of the slice, its elements).
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    parts: Mapping[str, Fragment] = field(default_factory=dict)


class Method(ABC):
    """The fine-tuning method of one trial.

    The training loop calls `build` and `attach` once. For every optimizer step it calls `before_step`, then the
    optimizer's own step, then `after_step`. At the end it calls `export`. A checkpoint saves what `state` returns, and
    a resumed run gives it to `restore`.
    """

    name: ClassVar[str]
    hyperparameters: ClassVar[type[Hyperparameters]] = AdapterHyperparameters
    export_kind: ClassVar[ExportKind] = "adapter"
    keeps_dropout: ClassVar[bool] = True
    """Whether the adapted layers keep the dropout mask and the dropout output for the backward pass."""
    writes_weights: ClassVar[bool] = False
    """Whether training or the export changes the weights of adapted layers. If so, a tied head needs its own weight."""

    def __init__(self, values: Mapping[str, Any], plan: RunPlan) -> None:
        self.values: Any = self.hyperparameters.model_validate(values)
        self.plan = plan
        self.model: Any = None

    def check(self) -> None:  # noqa: B027 - most methods have nothing to check
        """Refuse a run in which the method could not work. Called before anything starts.

        Raises:
            ValueError: names the hyperparameter and the values that would work.
        """

    def check_layers(self, shapes: Shapes) -> None:
        """Refuse a model whose layers the method cannot adapt. Called before anything starts.

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
        """Estimate the bytes that each worker needs beyond parameters, gradients and two moments."""
        return 0

    def extra_activations(self, shapes: Shapes) -> int:
        """Count the values per token that the adapted layers keep for the backward pass, beside the layers' inputs.

        An adapter keeps A x.
        """
        return self.values.largest_rank * len(shapes) if isinstance(self.values, AdapterHyperparameters) else 0

    @abstractmethod
    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        """Return the trainable model (a PeftModel for adapters). Only trainable parameters require gradients."""

    def make_optimizer(self, parameters: list[torch.nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
        """Return the optimizer of the trainable parameters, by default AdamW."""
        import torch

        fused = self.plan.fused_adamw or None  # None: PyTorch chooses among its other implementations
        return torch.optim.AdamW(parameters, lr=self.values.learning_rate, weight_decay=weight_decay, fused=fused)

    def learning_rate_factor(self, step: int) -> float:
        """Return the factor on the peak learning rate for optimizer step `step`, counted from 0."""
        plan = self.plan
        return learning_rate_factor(step, total_steps=plan.total_steps, warmup=plan.warmup, schedule=plan.schedule)

    def attach(self, model: torch.nn.Module, optimizer: Any) -> None:
        """Connect the method to its model and optimizer. Called once.

        The optimizer is torch's own or DeepSpeed's wrapper around it.
        """
        self.model = model

    def before_step(self) -> None:  # noqa: B027 - a hook
        """Called after the last backward pass of a step, while gradients still exist. Collective on all workers."""

    def after_step(self, step: int) -> dict[str, float]:
        """Called after optimizer step `step`, counted from 1. Collective on all workers.

        Returns the metrics of this step, if there are any.
        """
        return {}

    def trained_parameters(self) -> int:
        """Count the parameters that are trained now. A sharded parameter counts with its whole size."""
        # Under ZeRO-3 a parameter holds only this worker's shard; DeepSpeed keeps its whole size in `ds_numel`.
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters() if p.requires_grad)

    def state(self) -> MethodState:
        """Return what this worker needs to resume, beyond parameters and optimizer state."""
        return MethodState()

    def restore(self, values: Mapping[str, Any], tensors: Fragments) -> None:  # noqa: B027 - a hook
        """Continue from a saved state. Called after `attach`; any number of workers may have saved the state."""

    def export(self, model: Any, folder: Path) -> None:
        """Write the trained model in safetensors. `export_kind` says whether as an adapter or merged.

        Called on one worker, while the parameters are whole.
        """
        if self.export_kind == "adapter":
            # By default PEFT would also save the base model's own head if the head is adapted.
            model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
            return
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        model.save_pretrained(str(folder), safe_serialization=True)
