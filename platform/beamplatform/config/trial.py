"""The trial: one frozen value with everything that determines the outcome of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from beamplatform.config.sections import DataSection, EvaluationSection, ModelSection, TrainingSection
from beamplatform.config.suite import Preset
from beamplatform.methods import get_method
from beamplatform.methods.base import Method, RunPlan
from beamplatform.methods.lr_schedule import warmup_steps

_EXCLUDED_FROM_IDENTITY: dict[str, set[str]] = {
    "model": {"path"},
    "data": {"source", "train_source", "columns", "tolerated"},
    "training": {"log_every", "validate_every", "checkpoint_every", "cpus_per_worker", "gpus_per_worker"},
    "evaluation": {"engine", "batch_size", "adapters"},
}
"""Values that change how a run is executed and observed, but not its outcome.

The locations of the model and of the records are among them, because only their content counts.
"""


@dataclass(frozen=True)
class Content:
    """Fingerprints of the records, of the base model and of the code, which a preset only names."""

    records: str = ""
    model: str = ""
    code: str = ""


class Trial(BaseModel):
    """One method with one set of hyperparameters and one seed, on one model and data set.

    Attributes:
        fingerprint: hash of all records, independent of their path.
        base: hash of the base model's files, or the commit of a hub id.
        code: the version of the code, see `beamplatform.config.code_version`.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    suite: str
    preset: str
    method: str
    hyperparameters: dict[str, Any]
    seed: int
    model: ModelSection
    data: DataSection
    training: TrainingSection
    evaluation: EvaluationSection
    fingerprint: str = ""
    base: str = ""
    code: str = ""

    @property
    def configuration(self) -> str:
        """Eight hex digits: a hash of everything that determines the outcome, except the seed."""
        return digest(self.model_dump(mode="json", exclude={"seed": True, "preset": True, **_EXCLUDED_FROM_IDENTITY}))

    @property
    def name(self) -> str:
        return f"{self.method}-{self.configuration}-seed{self.seed}"

    def parameters(self) -> dict[str, Any]:
        """Return the trial's parameters as a flat dict for the tracking server, under the suite's own names."""
        flat: dict[str, Any] = {"method": self.method, "seed": self.seed}
        flat |= self.hyperparameters
        for section in ("model", "data", "training", "evaluation"):
            values = getattr(self, section).model_dump(exclude={"tolerated"})
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        return flat

    def total_steps(self, train_examples: int) -> int:
        """Return the number of optimizer steps of the run.

        Raises:
            ValueError: there are fewer examples than one global batch has.
        """
        training = self.training
        per_epoch = train_examples // training.global_batch
        if per_epoch == 0:
            raise ValueError(
                f"training.global_batch ({training.global_batch}) is larger than the training set ({train_examples})"
            )
        if training.max_steps is not None:
            return training.max_steps
        assert training.epochs is not None  # the suite's check: exactly one of the two is set
        return max(1, round(per_epoch * training.epochs))

    def make_method(self, train_examples: int) -> Method:
        """Return the trial's method, not yet attached to a model.

        Raises:
            ValueError: the method cannot do its work in a run of this length.
        """
        steps = self.total_steps(train_examples)
        plan = RunPlan(
            total_steps=steps,
            schedule=self.training.schedule,
            seed=self.seed,
            accumulation=self.training.accumulation,
            gradient_clipping=self.training.gradient_clipping,
            fused_adamw=self.training.fused_adamw,
            warmup=warmup_steps(self.training.warmup, steps),
        )
        method = get_method(self.method)(self.hyperparameters, plan)
        method.check()
        return method


def make_trial(
    suite: str,
    preset_name: str,
    preset: Preset,
    method: str,
    values: Mapping[str, Any],
    seed: int,
    *,
    content: Content | None = None,
) -> Trial:
    """Return the trial of a method; `values` are all of its hyperparameters (`Space.resolve`)."""
    content = content or Content()
    return Trial(
        suite=suite,
        preset=preset_name,
        method=method,
        hyperparameters=dict(values),
        seed=seed,
        model=preset.model,
        data=preset.data,
        training=preset.training_of(method, values),
        evaluation=preset.evaluation,
        fingerprint=content.records,
        base=content.model,
        code=content.code,
    )


def context(suite: str, preset: Preset, content: Content) -> dict[str, Any]:
    """Return what all trials of a sweep have in common, as far as it determines their outcome.

    If it changes, the trials are no longer the same trials.
    """
    sections = preset.model_dump(mode="json", include=set(_EXCLUDED_FROM_IDENTITY), exclude=_EXCLUDED_FROM_IDENTITY)
    return {"suite": suite, **sections, "records": content.records, "base": content.model, "code": content.code}


def digest(content: Any) -> str:
    """Return eight hex digits: a hash of plain JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
