"""A trial: everything that decides a run's outcome, as one frozen value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from beamplatform.methods import get_method
from beamplatform.methods.base import Method, RunPlan
from beamplatform.schedule import warmup_steps
from beamplatform.suite import DataSection, EvaluationSection, ModelSection, Preset, TrainingSection


class Trial(BaseModel):
    """One method with one set of hyperparameters and one seed, on one model and data set."""

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

    @property
    def configuration(self) -> str:
        """Eight hex digits that are the same for the same method and hyperparameters, whatever the seed."""
        text = json.dumps([self.method, self.hyperparameters], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        return f"{self.method}-{self.configuration}-seed{self.seed}"

    def parameters(self) -> dict[str, Any]:
        """Flat parameters under the suite's own names, for the tracking server."""
        flat: dict[str, Any] = {"method": self.method, "seed": self.seed}
        flat |= self.hyperparameters
        for section in ("model", "data", "training", "evaluation"):
            flat |= {f"{section}.{key}": value for key, value in getattr(self, section).model_dump().items()}
        return flat

    def total_steps(self, train_examples: int) -> int:
        """Optimizer steps of the run.

        Raises:
            ValueError: fewer examples than one batch.
        """
        training = self.training
        per_epoch = train_examples // training.global_batch
        if per_epoch == 0:
            raise ValueError(
                f"training.global_batch ({training.global_batch}) is larger than the training set ({train_examples})"
            )
        if training.max_steps is not None:
            return training.max_steps
        assert training.epochs is not None  # the suite's check: exactly one of the two
        return max(1, round(per_epoch * training.epochs))

    def make_method(self, train_examples: int) -> Method:
        """The trial's method, not yet attached to a model.

        Raises:
            ValueError: the method could not do its work in a run of this length.
        """
        steps = self.total_steps(train_examples)
        plan = RunPlan(
            total_steps=steps,
            schedule=self.training.schedule,
            seed=self.seed,
            accumulation=self.training.accumulation,
            gradient_clipping=self.training.gradient_clipping,
            warmup=warmup_steps(self.training.warmup, steps),
        )
        method = get_method(self.method)(self.hyperparameters, plan)
        method.check()
        return method


def plan_trials(suite: str, preset_name: str, preset: Preset, methods: Sequence[str]) -> list[Trial]:
    """Every configuration of every method, once per seed; methods are interleaved, so that a table fills evenly."""
    by_method = [
        [
            Trial(
                suite=suite,
                preset=preset_name,
                method=method,
                hyperparameters=values,
                seed=seed,
                model=preset.model,
                data=preset.data,
                training=preset.training_of(method, values),
                evaluation=preset.evaluation,
            )
            for seed in preset.search.seeds
            for values in preset.space(method).configurations(preset.search.samples, preset.search.seed)
        ]
        for method in methods
    ]
    longest = max(len(trials) for trials in by_method)
    return [trials[i] for i in range(longest) for trials in by_method if i < len(trials)]
