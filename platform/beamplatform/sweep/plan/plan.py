"""Plans a sweep: resolves its trials and finds every mistake that can be found before Ray starts."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from beamplatform.config.code_version import code_version
from beamplatform.config.space import Point, Space
from beamplatform.config.trial import Content, Trial, context, digest, make_trial
from beamplatform.data.quality import Quality, quality
from beamplatform.data.splits import TrainingRecords, test_records, training_records
from beamplatform.errors import UserError
from beamplatform.evaluation.evaluator import Evaluator
from beamplatform.evaluation.predictions import digest as text_digest
from beamplatform.evaluation.predictions import document_hash
from beamplatform.inference.identity import content_hash
from beamplatform.io.disk_cache import cached_json
from beamplatform.methods import get_method
from beamplatform.methods.base import AdapterHyperparameters, Method
from beamplatform.models.check import check_model
from beamplatform.models.loading import load_tokenizer, resolve_path
from beamplatform.models.shapes import ModelShapes, model_shapes
from beamplatform.sweep.plan.ledger import LedgerEntry, Role
from beamplatform.sweep.plan.memory_estimate import MemoryEstimate, check_head, estimate, target_shapes
from beamplatform.sweep.plan.proposals import listed_points
from beamplatform.tasks.record import Record
from beamplatform.training.attention import check_packing
from beamplatform.training.loss import check_loss_head

if TYPE_CHECKING:
    from beamplatform.config.sections import SearchSection
    from beamplatform.config.suite import Preset


@dataclass(frozen=True)
class Checked:
    """A trial that has passed all checks, and what it needs.

    Attributes:
        steps: number of optimizer steps.
        memory: the estimate for one worker.
        rank: the rank of the exported adapter; 0 for a merged model.
    """

    trial: Trial
    steps: int
    memory: MemoryEstimate
    rank: int


@dataclass(frozen=True)
class Plan:
    """A checked sweep.

    Attributes:
        spaces: each method's search space, in the order of the comparison.
        points: the points that each method's search will try, in order. The list is empty if there is nothing to
            search. It is None if the points depend on results or on how far a budget goes.
        checked: representative trials of each method: all of its `points`, or the corners of its space.
        test: the test records of each task.
        train_examples: number of examples that each trial is trained on.
        quality: the data quality counts over the records.
        identity: fingerprints of the records (for training, validation and test), of the base model and of the code.
        model: the shapes of the base model's layers.
    """

    suite: str
    preset_name: str
    preset: Preset
    spaces: Mapping[str, Space]
    points: Mapping[str, list[Point] | None]
    checked: Mapping[str, list[Checked]]
    test: dict[str, list[Record]]
    train_examples: int
    quality: Quality
    identity: Content
    model: ModelShapes

    @property
    def search(self) -> SearchSection:
        return self.preset.search

    @property
    def methods(self) -> list[str]:
        return list(self.spaces)

    @property
    def content(self) -> dict[str, Any]:
        """What all trials share and what their outcome depends on; see `beamplatform.config.trial.context`."""
        return context(self.suite, self.preset, self.identity)

    @property
    def context(self) -> str:
        return digest(self.content)

    @property
    def largest_rank(self) -> int:
        """The largest rank of all adapters that may be exported; 1 if there are none."""
        return max([1, *(checked.rank for checked in self._all)])

    @property
    def largest(self) -> Checked:
        """The trial whose workers need the most memory."""
        return max(self._all, key=lambda one: one.memory.total)

    @property
    def _all(self) -> list[Checked]:
        return [checked for checked_trials in self.checked.values() for checked in checked_trials]

    @property
    def adapters(self) -> int:
        """How many adapters will be asked the test questions; those of a search with a budget are not counted."""
        kinds = [method for method in self.methods if get_method(method).export_kind == "adapter"]
        searched = sum(self.search_trials(method) or 0 for method in kinds) if self.search.evaluate == "all" else 0
        return searched + len(kinds) * len(self.search.seeds)

    @property
    def questions(self) -> int:
        """Number of test questions of all tasks together."""
        return sum(map(len, self.test.values()))

    def steps(self, method: str) -> int:
        """The most optimizer steps that a trial of the method takes."""
        return max(checked.steps for checked in self.checked[method])

    def search_trials(self, method: str) -> int | None:
        """How many trials the method's search has; None if a budget decides."""
        points = self.points[method]
        if points is not None:
            return len(points)
        if self.search.budget is not None:
            return None
        return min(self.search.trials, self.spaces[method].size or self.search.trials)

    @property
    def expected(self) -> int:
        """How many trials there will be; those of a search with a budget are not counted."""
        return sum((self.search_trials(m) or 0) + len(self.search.seeds) for m in self.methods)

    def trial(self, method: str, point: Point, role: Role, seed: int) -> Trial:
        """Make the trial of a method at a point of its space.

        If the search stops trials early and the suite does not set `validate_every`, a search trial is validated
        every `grace_period` steps, and so at every rung.
        """
        values = self.spaces[method].resolve(point)
        trial = make_trial(self.suite, self.preset_name, self.preset, method, values, seed, content=self.identity)
        if role == "search" and self.search.stops_early and trial.training.validate_every is None:
            steps = grace_period(trial.total_steps(self.train_examples), self.search.reduction)
            trial = trial.model_copy(update={"training": trial.training.model_copy(update={"validate_every": steps})})
        return trial

    def split(self, entries: Sequence[LedgerEntry]) -> tuple[list[LedgerEntry], list[LedgerEntry]]:
        """Split earlier trials into those of this plan and those of an earlier state of the plan."""
        current: list[LedgerEntry] = []
        outdated: list[LedgerEntry] = []
        for entry in entries:
            (current if self.holds(entry) else outdated).append(entry)
        return current, outdated

    def holds(self, entry: LedgerEntry) -> bool:
        """Whether an earlier trial belongs to this plan: it has the same content and lies in the search space."""
        method, trial = entry.trial.method, entry.trial
        if method not in self.spaces:
            return False
        space, seed = self.spaces[method], self.search.trial_seed if entry.role == "search" else trial.seed
        points = [entry.point] if space.contains(entry.point) else []
        if entry.role == "final" and space.size == 1:
            points += space.corners()  # a value that was searched then may be fixed now
        return any(self.trial(method, point, entry.role, seed).name == trial.name for point in points)

    def check(self, trial: Trial) -> Checked:
        """Check a trial and return what it needs.

        Raises:
            ValueError: the trial could not do its work; the message says what would be right.
        """
        return _checked(trial, self.train_examples, self.model)


def plan_sweep(
    suite: str, preset_name: str, preset: Preset, methods: Sequence[str], options: Collection[str] = ()
) -> Plan:
    """Resolve and check what will run.

    Args:
        options: task options (`Task.options`) beside the suite's own.

    Raises:
        UserError: the first mistake found: in the data, in a rank, or in a method that could not do its work.
    """
    tasks, search = preset.evaluation.tasks, preset.search
    test = test_records(preset.data, tasks, preset.evaluation.max_records)
    training = training_records(preset.data, tasks)
    everything = [training.train, training.validation, *(test[task] for task in sorted(test))]
    fingerprint = text_digest("\n".join(document_hash(record) for records in everything for record in records))
    spaces = {method: preset.space(method) for method in methods}
    points = {method: _points(space, search) for method, space in spaces.items()}
    content = Content(fingerprint, content_hash(resolve_path(preset.model.path))[:16], code_version(tasks))
    check_model(preset.model.path, content.model, trains=True)
    counted = _quality(preset, training, test, content)
    counted.check(preset.data)
    model, count = model_shapes(preset.model.path, content.model), len(training.train)
    model.check_length(preset.data.max_length)
    checked: dict[str, list[Checked]] = {}
    for method, space in spaces.items():
        checked[method] = []
        for point in points[method] or space.corners():
            values = space.resolve(point)
            trial = make_trial(suite, preset_name, preset, method, values, search.seeds[0], content=content)
            try:
                checked[method].append(_checked(trial, count, model))
            except ValueError as error:
                where = ", ".join(f"{key}={value}" for key, value in point.items())
                raise UserError(f"{method}{f' with {where}' if where else ''}: {error}") from None
    plan = Plan(suite, preset_name, preset, spaces, points, checked, test, count, counted, content, model)
    if test:
        rank = plan.largest_rank
        Evaluator(preset.model, preset.evaluation, test, adapters=1, largest_rank=rank, options=options).check()
    return plan


def _quality(preset: Preset, training: TrainingRecords, test: Mapping[str, list[Record]], content: Content) -> Quality:
    """Return the data quality counts, which are cached for the same records, tokenizer and code."""
    tasks = preset.evaluation.tasks
    data_settings = preset.data.model_dump(exclude={"tolerated", "source", "train_source", "columns"})
    key = (content.records, content.model, content.code, data_settings, version("transformers"))
    counts = cached_json(
        "quality", key, lambda: asdict(quality(tasks, training, test, load_tokenizer(preset.model.path), preset.data))
    )
    return Quality(**counts)


def _points(space: Space, search: SearchSection) -> list[Point] | None:
    if space.size == 1:
        return []
    if search.proposes or search.budget is not None:
        return None
    return list(itertools.islice(listed_points(space, search), search.trials))


def _checked(trial: Trial, train_examples: int, model: ModelShapes) -> Checked:
    method: Method = trial.make_method(train_examples)
    if method.plan.warmup > method.plan.total_steps:
        raise ValueError(
            f"training.warmup: {method.plan.warmup} steps of warm-up go beyond the last of {method.plan.total_steps} "
            "steps, so that the learning rate never reaches its peak; give fewer, or a fraction such as 0.1"
        )
    shapes = target_shapes(model, method.values)
    method.check_layers(shapes)
    check_head(method, model, shapes, trial.training)
    check_loss_head(model.config, trial.training.loss_head)
    if trial.training.packing:
        check_packing(model)
    adapter = method.export_kind == "adapter" and isinstance(method.values, AdapterHyperparameters)
    rank = method.values.exported_rank if adapter else 0
    return Checked(trial, method.plan.total_steps, estimate(trial, method, model, shapes), rank)


def grace_period(total_steps: int, reduction: int) -> int:
    """Return the optimizer step of the first rung, the earliest step at which a trial may be stopped.

    There are three rungs, each `reduction` times as late as the one before. The third is the end of training.
    """
    return -(-total_steps // reduction**2)
