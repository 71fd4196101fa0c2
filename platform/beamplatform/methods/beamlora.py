"""BeamLoRA (ACL 2025, arXiv 2502.13604): this project's package `beamlora`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union, get_args, get_type_hints

from pydantic import AfterValidator, Field, create_model

from beamlora.options import BeamOptions
from beamplatform.methods.base import AdapterHyperparameters, Method, MethodState

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from beamlora.fragments import Fragments


HISTORY = "beam.json"
"""The name of a file beside an exported adapter.

For each beam step it holds the optimizer step, the threshold, each module's (pruned, parent) pairs of ranks, and the
scores of all ranks just after the beam step.
"""


def _steps_or_fraction(value: int | float) -> int | float:
    if value >= 2 if isinstance(value, int) else 0 < value < 1:
        return value
    raise ValueError(f"must be an integer >= 2 (optimizer steps) or a fraction of all steps in (0, 1), got {value}")


def _declared(option: dataclasses.Field[Any]) -> tuple[Any, Any]:
    """Return an option of `beamlora` as a pydantic field: its type, with limits on floats, and its default."""
    kind = _OPTION_TYPES[option.name]
    if limits := option.metadata["limits"]:
        parts = get_args(kind) or (kind,)
        kind = Union[tuple(Annotated[part, Field(**limits)] if part is float else part for part in parts)]  # noqa: UP007 (no annotation)
    return kind, Field(option.default, description=option.metadata["help"])


_OPTION_TYPES = get_type_hints(BeamOptions)

_FIELDS: dict[str, Any] = {option.name: _declared(option) for option in dataclasses.fields(BeamOptions)} | {
    "r": (Annotated[int, Field(ge=2, description="at least 2: a beam step prunes one rank and copies one")], 8),
    "p_init": (Annotated[float, Field(gt=0, lt=1, description="must be below 1: at 1 no rank is ever operated")], 0.95),
    "interval": (
        Annotated[int | float, AfterValidator(_steps_or_fraction)],
        Field(0.1, description="steps between two beam steps, or a fraction of all steps"),
    ),
}
"""The pydantic fields of the hyperparameters. Three have other limits or defaults than in `beamlora` alone."""

BeamLoraHyperparameters = create_model(
    "BeamLoraHyperparameters",
    __base__=AdapterHyperparameters,
    __module__=__name__,
    __doc__="The options of `beamlora.BeamOptions`.",
    **_FIELDS,
)


class BeamLora(Method):
    """LoRA with a trained score per rank; every `interval` steps the weakest ranks become copies of the strongest."""

    name: ClassVar[str] = "beamlora"
    hyperparameters: ClassVar[type[AdapterHyperparameters]] = BeamLoraHyperparameters
    keeps_dropout: ClassVar[bool] = False

    def check(self) -> None:
        from beamlora.schedule import plan_schedule

        plan_schedule(BeamOptions(**self._own_options()), self.plan.total_steps, self.plan.schedule)

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
        search_state = self._search.state_dict()
        return MethodState(parts=search_state.pop("snapshot"), values={**search_state, "history": self._history})

    def restore(self, values: Mapping[str, Any], tensors: Fragments) -> None:
        self._history = list(values["history"])
        self._search.load_state_dict({**values, "snapshot": tensors})

    def export(self, model: Any, folder: Path) -> None:
        from beamlora import export_lora

        export_lora(model, str(folder))
        (folder / HISTORY).write_text(json.dumps(self._history), encoding="utf-8")

    def _config(self, base: PreTrainedModel) -> Any:
        from beamlora import BeamLoraConfig

        return BeamLoraConfig(**self._own_options(), **self.values.lora_arguments(base))

    def _own_options(self) -> dict[str, Any]:
        return self.values.model_dump(include={option.name for option in dataclasses.fields(BeamOptions)})
