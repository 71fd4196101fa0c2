"""ReLoRA (Lialin et al. 2023, arXiv 2307.05695): this project's `beamplatform.baselines.relora`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from beamplatform.methods.base import AdapterHyperparameters, ExportKind, Hyperparameters, Length, Method, MethodState
from beamplatform.methods.head import give_head_its_own_weight
from beamplatform.methods.lr_schedule import warmup_steps

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from beamlora.fragments import Fragments


class ReloraHyperparameters(AdapterHyperparameters):
    """Lengths are optimizer steps (integers) or fractions of all steps (floats). Defaults are the authors'."""

    cycle: Length = Field(0.25, description="steps between merges; the run must be a multiple of it")
    first_warmup: Length = Field(500, description="warm-up at the start")
    restart_warmup: Length = Field(100, description="warm-up after each merge, from 0 back to the curve")
    floor: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="where the cosine ends, relative to the peak")
    moments: Literal["largest", "random"] = Field("largest", description="which elements of the moments a merge keeps")
    prune: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="share of the moments set to zero; null = 0.9 for largest, 0.999 for random"
    )


class Relora(Method):
    """LoRA that is merged into the base weights every `cycle` steps and then restarts with a new warm-up."""

    name: ClassVar[str] = "relora"
    writes_weights: ClassVar[bool] = True
    hyperparameters: ClassVar[type[Hyperparameters]] = ReloraHyperparameters
    # Merges change the base weights. After n cycles the rank of their total update is up to n r.
    export_kind: ClassVar[ExportKind] = "merged"

    def check(self) -> None:
        schedule = self._schedule()
        shortest = min(
            b - a for a, b in zip((0, *schedule.restarts), (*schedule.restarts, schedule.total_steps), strict=True)
        )
        for key, steps in (("first_warmup", schedule.warmup), ("restart_warmup", schedule.restart_warmup)):
            if steps >= shortest:
                raise ValueError(
                    f"{key} of {steps} steps takes up the whole cycle of {shortest}: must be below it (a number of "
                    "steps, or a fraction of all steps)"
                )

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        from peft import LoraConfig, get_peft_model

        give_head_its_own_weight(base, self.values)
        self._curve = self._schedule()
        return get_peft_model(base, LoraConfig(**self.values.lora_arguments(base)))

    def attach(self, model: torch.nn.Module, optimizer: Any) -> None:
        from beamplatform.baselines.relora.merging import ReLora

        super().attach(model, optimizer)
        self._relora = ReLora(
            self.model,
            optimizer,
            self._curve.restarts,
            seed=self.plan.seed,
            moments=self.values.moments,
            prune=self.values.prune,
        )

    def learning_rate_factor(self, step: int) -> float:
        return self._curve.factor(step)

    def after_step(self, step: int) -> dict[str, float]:
        return {"relora/merges": float(self._relora.merges)} if self._relora.step() else {}

    def state(self) -> MethodState:
        relora_state = self._relora.state_dict()
        return MethodState(parts=relora_state.pop("merged"), values=relora_state)

    def restore(self, values: Mapping[str, Any], tensors: Fragments) -> None:
        self._relora.load_state_dict({**values, "merged": tensors})

    def _schedule(self) -> Any:
        from beamplatform.baselines.relora.schedule import RestartSchedule, equal_cycles

        total = self.plan.total_steps
        return RestartSchedule(
            total_steps=total,
            restarts=equal_cycles(total, self.values.cycle),
            warmup=warmup_steps(self.values.first_warmup, total),
            restart_warmup=warmup_steps(self.values.restart_warmup, total),
            floor=self.values.floor,
        )
