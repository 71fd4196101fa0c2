"""Turns the trials of a sweep into one row per method: numbers only, without MLflow and without printing."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from beamplatform.errors import UserError
from beamplatform.metrics import FINAL_PARAMETERS, MEMORY, SECONDS, TRAINED, VALIDATION_LOSS, WORKERS
from beamplatform.report.cells import Cell, cell_of_seeds, mark
from beamplatform.report.labels import method_label, task_order
from beamplatform.report.published import published
from beamplatform.report.statistics import Difference
from beamplatform.tracking.runs import TrialRecord

EVAL = "eval/"
AVERAGE = "average"
_EVEN = 0.05
"""Relative difference in trained parameters that still counts as even: BeamLoRA's scores and DoRA's magnitudes add a
few percent to an adapter."""

Choice = Literal["only one", "lowest validation loss", "first by name"]


@dataclass(frozen=True)
class Searched:
    """Summary of one method's search.

    Attributes:
        trained, stopped, failed: numbers of trials that finished, were stopped early, and failed.
        best: validation loss of the chosen configuration in the search; None if the search recorded none for it.
        losses: finite validation losses of the finished trials, ascending.
        hours: hours of training, summed over all workers, without pauses and starts.
    """

    trained: int
    stopped: int
    failed: int
    best: float | None
    losses: tuple[float, ...]
    hours: float


@dataclass(frozen=True)
class Row:
    """One method, represented by its chosen configuration.

    Attributes:
        names: names of the trials behind the numbers, in the order of `seeds`.
        run_ids: MLflow's ids of these trials.
        cells: task -> accuracy; ``None`` if a seed has no score for the task.
        average: mean over the tasks first, then over the seeds; ``None`` if a score is missing.
        validation_loss: mean over the seeds; ``None`` if a seed recorded none or diverged.
        candidates: number of configurations that the choice was made from.
        searched: summary of the search that chose; None if the compared trials themselves were the search.
        settings: the chosen values of those parameters in which the candidates differ.
        parameters: the most parameters trained at a time (AdaLoRA prunes, IncreLoRA grows); ``None`` if not recorded.
        kept: parameters trained at the end; ``None`` if not recorded.
        seconds: training time without pauses, mean over the seeds; ``None`` if not recorded.
        memory: peak memory of a worker in bytes; ``None`` if not recorded.
        model: the base model, as the suite names it.
        published: task -> accuracy (0..1) that the BeamLoRA paper reports for the same model, method and rank.
    """

    method: str
    configuration: str
    seeds: tuple[int, ...]
    names: tuple[str, ...]
    run_ids: tuple[str, ...]
    cells: Mapping[str, Cell | None]
    average: Cell | None
    validation_loss: float | None
    candidates: int
    choice: Choice
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: int | None = None
    kept: int | None = None
    seconds: float | None = None
    memory: int | None = None
    model: str = ""
    searched: Searched | None = None
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The accuracies of methods on tasks.

    Attributes:
        left_out: every trial that takes no part, with the reason.
        alone: whether only one method has finished trials.
        uneven: sentences that say what one method had more of than another, or why a difference was not tested.
        notes: task -> note for readers of its column (another version of the data, another way to compare answers).
        differences: one method tested against every other, by their answers to the same questions.
    """

    suite: str
    sweep: str
    preset: str
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    alone: bool = False
    uneven: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()

    @property
    def yardstick(self) -> Row:
        """The row to which costs are relative: LoRA's, or the first if LoRA takes no part."""
        return _yardstick(self.rows)

    def row(self, method: str) -> Row | None:
        """Return the row of a method; None if it takes no part."""
        return next((row for row in self.rows if row.method == method), None)


def compare(
    runs: Sequence[TrialRecord],
    *,
    suite: str = "",
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    context: str | None = None,
) -> Comparison:
    """Choose each method's configuration by validation loss and average its scores over the seeds.

    If a method was searched, its search trials choose the configuration, and its final trials, which have fresh seeds,
    are compared. Otherwise the configuration with the lowest mean ``validation/loss`` over its seeds represents the
    method. Ties are decided by the trial's name; test scores never take part. A configuration with a seed that diverged
    or recorded no loss is chosen only if no other is left. If several trials have the same configuration and seed, the
    newest counts.

    Args:
        runs: the trials of one sweep, of any status. Only finished ones with scores count; the others are left out.
        methods: methods of the rows, in this order; ``None``: all, in the order of first appearance in ``runs``.
        tasks: tasks of the columns, in this order; ``None``: every scored task, in the order of `task_order`.
        context: only trials with this context count; ``None``: that of the newest trial. Trials that were made before
            the sweep's suite was changed have another one.

    Raises:
        UserError: no trial can be compared, or a named method or task has no scores.
    """
    context = context if context is not None or not runs else runs[-1].context
    superseded = [run for run in runs if run.context != context]
    runs = [run for run in runs if run not in superseded]
    search = [run for run in runs if run.role == "search"]
    everything, runs = runs, [run for run in runs if run.role != "search"]
    finished = [run for run in runs if run.status == "FINISHED"]
    scored = [run for run in finished if _tasks_of(run)] or [run for run in finished if VALIDATION_LOSS in run.metrics]
    left_out = tuple(f"{run.name} ({_reason(run)})" for run in runs if run not in scored)
    left_out += tuple(f"{run.name} (made before the suite was changed)" for run in superseded)
    if not scored:
        counts = Counter(_reason(run) for run in everything)
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items())) or "it has no trials"
        raise UserError(f"no finished trial with scores to compare: {reasons}")
    kept_tasks = _selected("task", tasks, sorted({task for run in scored for task in _tasks_of(run)}, key=task_order))
    kept_methods = _selected("method", methods, list(dict.fromkeys(run.method for run in scored)))
    rows = [
        _row(
            method,
            [run for run in scored if run.method == method],
            kept_tasks,
            _unfinished(runs, scored),
            [run for run in search if run.method == method],
        )
        for method in kept_methods
    ]
    return Comparison(
        suite=suite,
        sweep=scored[-1].sweep,
        preset=scored[-1].preset,
        tasks=tuple(kept_tasks),
        rows=_marked(rows, kept_tasks),
        left_out=left_out,
        alone=len({run.method for run in scored}) == 1,
        uneven=tuple(_unevenness(rows)),
        notes={task: note for run in scored for task, note in run.notes.items() if task in kept_tasks},
    )


def _yardstick(rows: Sequence[Row]) -> Row:
    """LoRA's row, or the first if LoRA takes no part."""
    return next((row for row in rows if row.method == "lora"), rows[0])


def _unevenness(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a sentence for each way in which a row had more, or less, than the yardstick."""
    yardstick = _yardstick(rows)
    name = method_label(yardstick.method)
    for row in rows:
        label = method_label(row.method)
        if row.parameters and yardstick.parameters and abs(row.parameters / yardstick.parameters - 1) > _EVEN:
            changed = row.kept is not None and row.kept != row.parameters
            end = f" ({(row.kept or 0) / yardstick.parameters:.2f} times at the end)" if changed else ""
            yield f"{label} trains {row.parameters / yardstick.parameters:.2f} times the parameters of {name}{end}"
        if len(row.seeds) != len(yardstick.seeds):
            yield f"{label} has {len(row.seeds)} seeds, {name} {len(yardstick.seeds)}"
        if row.candidates != yardstick.candidates:
            yield f"{label} was chosen from {row.candidates} configurations, {name} from {yardstick.candidates}"


def _tasks_of(run: TrialRecord) -> list[str]:
    return [key.removeprefix(EVAL) for key in run.metrics if key.startswith(EVAL) and key != EVAL + AVERAGE]


def _reason(run: TrialRecord) -> str:
    if run.status != "FINISHED":
        return run.status
    return "of the search" if run.role == "search" else "without scores"


def _selected(kind: str, selection: Sequence[str] | None, present: list[str]) -> list[str]:
    if selection is None:
        return present
    unknown = [name for name in selection if name not in present]
    if unknown:
        raise UserError(f"no scores of the {kind} {', '.join(unknown)}; there are scores of {', '.join(present)}")
    return list(dict.fromkeys(selection))


def _unfinished(runs: Sequence[TrialRecord], scored: Sequence[TrialRecord]) -> set[str]:
    """Return the configurations with a seed whose newest trial failed, was killed or still runs.

    The mean loss over their remaining seeds is not comparable.
    """
    newest = {(run.configuration, run.seed): run for run in sorted(runs, key=lambda run: run.started)}
    return {run.configuration for run in newest.values() if run not in scored}


def _row(
    method: str,
    runs: Sequence[TrialRecord],
    tasks: Sequence[str],
    unfinished: Collection[str],
    search: Sequence[TrialRecord] = (),
) -> Row:
    by_configuration: dict[str, dict[int, TrialRecord]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: run.started):
        by_configuration[run.configuration][run.seed] = run
    candidates = {
        configuration: [by_seed[seed] for seed in sorted(by_seed)]
        for configuration, by_seed in by_configuration.items()
    }
    # If there are search losses, they choose, so that the winner of an earlier, smaller search can lose to a new one.
    search_losses = {run.configuration: _mean_loss([run]) for run in search if run.status == "FINISHED"}
    losses = {
        configuration: search_losses.get(configuration)
        if search_losses
        else (None if configuration in unfinished else _mean_loss(seeds))
        for configuration, seeds in candidates.items()
    }

    def rank(configuration: str) -> tuple[float, str]:
        loss = losses[configuration]
        return (math.inf if loss is None else loss, candidates[configuration][0].name)

    best = min(candidates, key=rank)
    chosen = candidates[best]
    choice: Choice = "lowest validation loss"
    tried = list({run.configuration: run for run in search}.values()) or [seeds[0] for seeds in candidates.values()]
    if len(tried) == 1:
        choice = "only one"
    elif losses[best] is None:
        choice = "first by name"
    per_seed = [_seed_average(run, tasks) for run in chosen]
    return Row(
        method=method,
        configuration=best,
        seeds=tuple(run.seed for run in chosen),
        names=tuple(run.name for run in chosen),
        run_ids=tuple(run.run_id for run in chosen),
        cells={task: cell_of_seeds([run.metrics.get(EVAL + task) for run in chosen]) for task in tasks},
        average=cell_of_seeds(per_seed),
        validation_loss=_mean_loss(chosen) if search_losses else losses[best],
        candidates=len(tried),
        choice=choice,
        settings=_differing(chosen[0], tried),
        searched=_searched(search, search_losses.get(best)) if search else None,
        parameters=_most(chosen, (TRAINED, FINAL_PARAMETERS)),
        kept=_most(chosen, (FINAL_PARAMETERS,)),
        seconds=_mean([run.metrics.get(SECONDS) for run in chosen]),
        memory=_most(chosen, (MEMORY,)),
        model=chosen[0].params.get("model.path", ""),
        published=published(chosen[0].params.get("model.path", ""), method, chosen[0].params.get("r")),
    )


def _searched(runs: Sequence[TrialRecord], best: float | None) -> Searched:
    count = Counter(run.status for run in runs)
    trained = [_mean_loss([run]) for run in runs if run.status == "FINISHED"]
    worker_seconds = sum(run.metrics.get(SECONDS, 0.0) * run.metrics.get(WORKERS, 1.0) for run in runs)
    return Searched(
        trained=count["FINISHED"],
        stopped=count["KILLED"],
        failed=count["FAILED"],
        best=best,
        losses=tuple(sorted(loss for loss in trained if loss is not None)),
        hours=worker_seconds / 3600,
    )


def _most(runs: Sequence[TrialRecord], metrics: Sequence[str]) -> int | None:
    values = [run.metrics[name] for run in runs for name in metrics if name in run.metrics]
    return int(max(values)) if values else None


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if values and len(present) == len(values) else None


def _mean_loss(runs: Sequence[TrialRecord]) -> float | None:
    losses = [run.metrics.get(VALIDATION_LOSS, math.nan) for run in runs]
    return statistics.fmean(losses) if all(map(math.isfinite, losses)) else None


def _seed_average(run: TrialRecord, tasks: Sequence[str]) -> float | None:
    scores = [run.metrics[EVAL + task] for task in tasks if EVAL + task in run.metrics]
    return statistics.fmean(scores) if tasks and len(scores) == len(tasks) else None


def _differing(chosen: TrialRecord, candidates: Sequence[TrialRecord]) -> dict[str, str]:
    names = sorted({name for run in candidates for name in run.params} - {"seed"})
    return {
        name: chosen.params[name]
        for name in names
        if name in chosen.params and len({run.params.get(name) for run in candidates}) > 1
    }


def _marked(rows: Sequence[Row], tasks: Sequence[str]) -> tuple[Row, ...]:
    columns = {task: mark([row.cells[task] for row in rows]) for task in tasks}
    averages = mark([row.average for row in rows])
    return tuple(
        replace(row, cells={task: columns[task][index] for task in tasks}, average=averages[index])
        for index, row in enumerate(rows)
    )
