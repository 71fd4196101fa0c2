"""Everything that can be found wrong before Ray starts is found here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from beamplatform.data.records import Record
from beamplatform.data.splits import test_records, training_records
from beamplatform.errors import UserError
from beamplatform.methods.base import AdapterHyperparameters
from beamplatform.models import skeleton
from beamplatform.sweep.evaluator import Evaluator
from beamplatform.sweep.memory import MemoryEstimate, estimate, target_shapes
from beamplatform.tasks.predictions import digest, document_hash
from beamplatform.trial import Trial, plan_trials

if TYPE_CHECKING:
    from beamplatform.suite import Preset


@dataclass(frozen=True)
class Plan:
    """A checked sweep.

    Attributes:
        trials: what will run, in this order.
        steps: optimizer steps of each trial.
        memory: estimate for one worker of each trial.
        test: the records of each task.
        train_examples: examples each trial learns from.
        largest_rank: the largest rank of an exported adapter.
        fingerprint: of all records: what is trained, validated and tested on.
        max_concurrent: most trials at once; None = as many as fit.
    """

    trials: list[Trial]
    steps: list[int]
    memory: list[MemoryEstimate]
    test: dict[str, list[Record]]
    train_examples: int
    largest_rank: int
    fingerprint: str
    max_concurrent: int | None = None


def plan_sweep(
    suite: str, preset_name: str, preset: Preset, methods: Sequence[str], options: Collection[str] = ()
) -> Plan:
    """Resolve and check every trial; `options` are those of the tasks, beside the suite's own.

    Raises:
        UserError: the first thing that is wrong: data, a rank, a method that could not do its work in the run.
    """
    trials = plan_trials(suite, preset_name, preset, methods)
    tasks = preset.evaluation.tasks
    test = test_records(preset.data, tasks, preset.evaluation.max_records)
    training = training_records(preset.data, tasks)
    count = len(training.train)
    everything = [training.train, training.validation, *(test[task] for task in sorted(test))]
    fingerprint = digest("\n".join(document_hash(record) for records in everything for record in records))
    model = skeleton(preset.model.path)
    steps, memory, ranks = [], [], []
    for trial in trials:
        try:
            method = trial.make_method(count)
            shapes = target_shapes(model, method.values)
            method.check_layers(shapes)
        except ValueError as error:
            raise UserError(f"{trial.name}: {error}") from None
        steps.append(method.plan.total_steps)
        memory.append(estimate(trial, method, model, shapes))
        if method.export_kind == "adapter" and isinstance(method.values, AdapterHyperparameters):
            ranks.append(method.values.exported_rank)
    if test:
        rank = max(ranks, default=1)
        Evaluator(preset.model, preset.evaluation, test, adapters=1, largest_rank=rank, options=options).check()
    return Plan(trials, steps, memory, test, count, max(ranks, default=1), fingerprint, preset.search.max_concurrent)
