"""BeamLoRA (ACL 2025, arXiv 2502.13604): this project's package `beamlora`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from beamplatform.methods.base import AdapterHyperparameters, Method, MethodState

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from beamlora.fragments import Fragments


HISTORY = "beam.json"
"""Beside an exported adapter: for each beam step its step and threshold, each module's (pruned, parent) pairs of ranks,
and the scores of all ranks just after it."""


class BeamLoraHyperparameters(AdapterHyperparameters):
    """The options of `beamlora.BeamLoraConfig`, whose docstring explains each."""

    r: Annotated[int, Field(ge=2, description="at least 2: a beam step needs a rank to prune and one to copy")] = 8
    p_init: Annotated[float, Field(gt=0, lt=1, description="below 1, where no rank would ever be operated")] = 0.95
    interval: int | float = Field(0.1, description="steps between two beam steps, or a fraction of all steps")
    temperature: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    score_scale: Literal["rank", "unit"] = "rank"
    threshold_horizon: Literal["window", "total"] = "window"
    threshold_schedule: Literal["cosine", "linear", "constant", "match_lr"] = "cosine"
    threshold_scope: Literal["global", "module"] = "global"
    threshold_crossing: Literal["greater", "greater_equal"] = "greater"
    operate_until: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    copy_moments: bool = True
    reset_score_moments: Literal["all", "operated", False] = "all"
    expansion: bool = True
    assessment: bool = True
    history: bool = True
    fused: bool = Field(True, description="adapted layers as one operation: less time and memory, the same numbers")
    snapshot_device: Literal["cpu", "parameter"] = Field("cpu", description="where each worker keeps its snapshot")

    @field_validator("interval")
    @classmethod
    def _steps_or_fraction(cls, value: int | float) -> int | float:
        if value >= 2 if isinstance(value, int) else 0 < value < 1:
            return value
        raise ValueError(f"must be an integer >= 2 (optimizer steps) or a fraction of all steps in (0, 1), got {value}")


class BeamLora(Method):
    """LoRA with a trained score per rank; every `interval` steps the weakest ranks become copies of the strongest."""

    name: ClassVar[str] = "beamlora"
    hyperparameters: ClassVar[type[BeamLoraHyperparameters]] = BeamLoraHyperparameters
    keeps_dropout: ClassVar[bool] = False

    def check(self) -> None:
        from beamlora.schedule import plan_schedule

        plan_schedule(self.values, self.plan.total_steps, self.plan.schedule)

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        from beamlora import get_beamlora_model

        return get_beamlora_model(base, self._config(base))

    def attach(self, model: torch.nn.Module, optimizer: Any) -> None:
        from beamlora import BeamSearch

        super().attach(model, optimizer)
        self._search = BeamSearch(
            self.model,
            optimizer,
            total_steps=self.plan.total_steps,
            seed=self.plan.seed,
            lr_schedule=self.plan.schedule,
            learning_rate=self.values.learning_rate,
        )
        self._history: list[dict[str, Any]] = []

    def after_step(self, step: int) -> dict[str, float]:
        report = self._search.step()
        if report is None:
            return {}
        scores = self._search.scores()
        self._history.append(
            {
                "step": report.step,
                "threshold": report.threshold,
                "operated": report.operated,
                "scores": {name: [round(float(s), 6) for s in values] for name, values in scores.items()},
            }
        )
        return {"beam/threshold": report.threshold, "beam/operated_ranks": float(report.operated_ranks)}

    def state(self) -> MethodState:
        found = self._search.state_dict()
        return MethodState(parts=found.pop("snapshot"), values={**found, "history": self._history})

    def restore(self, values: Mapping[str, Any], tensors: Fragments) -> None:
        self._history = list(values["history"])
        self._search.load_state_dict({**values, "snapshot": tensors})

    def export(self, model: Any, folder: Path) -> None:
        from beamlora import export_lora

        export_lora(model, str(folder))
        (folder / HISTORY).write_text(json.dumps(self._history), encoding="utf-8")

    def _config(self, base: PreTrainedModel) -> Any:
        from beamlora import BeamLoraConfig

        own = self.values.model_dump(exclude=set(AdapterHyperparameters.model_fields))
        return BeamLoraConfig(**own, **self.values.lora_arguments(base))
