"""Describes a plan in words before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from beamplatform.errors import UserError
from beamplatform.sweep.plan.ledger import LedgerEntry
from beamplatform.sweep.plan.memory_check import check_memory, room_here
from beamplatform.sweep.plan.plan import Checked, Plan
from beamplatform.sweep.plan.saved_sweep import SavedSweep, differences

_PROPOSED = "proposed from the results of earlier ones"


def print_plan(plan: Plan, console: Console) -> None:
    """Print every trial that is known beforehand, with its optimizer steps and estimated memory."""
    preset = plan.preset
    title = f"{plan.suite}, preset {plan.preset_name}: {announced(plan)}"
    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE, pad_edge=False)
    table.add_column("trial, with its own and searched values", min_width=26, overflow="fold")
    # With headings of two lines the table fits 80 columns.
    for heading in ("\nsteps", "\nweights", "adapter,\noptimizer", "activa-\ntions", "all of\na worker"):
        table.add_column(heading, justify="right", no_wrap=True)
    for method in plan.methods:
        for name, checked in _rows(plan, method):
            keys = dict.fromkeys([*plan.spaces[method].domains, *preset.methods[method]])
            values = " ".join(f"{key}={_short(checked.trial.hyperparameters[key])}" for key in keys)
            memory = checked.memory
            parts = (memory.weights, memory.adapter, memory.activations, memory.total)
            trial = Text.assemble(name, (f"\n  {values}" if values else "", "dim"))
            table.add_row(trial, str(checked.steps), *map(_size, parts))
    console.print(table)
    for line in left_out(plan):
        console.print(line, highlight=False, soft_wrap=True)
    if process := plan.largest.memory.process:
        text = f"Each estimate includes {_size(process)} for the worker's process and its libraries."
        console.print(text, highlight=False)
    for method in plan.methods:
        if plan.points[method] != []:
            console.print(f"{method}: {_search_in_words(plan, method)}", highlight=False, soft_wrap=True)
    fixed = " ".join(f"{key}={_short(value)}" for key, value in preset.shared.items() if not isinstance(value, dict))
    console.print(f"Shared hyperparameters: {fixed or 'nothing'}", highlight=False)
    console.print(
        f"{plan.train_examples} training examples, {plan.questions} test questions for each final trial. "
        "Nothing was started.",
        soft_wrap=True,
    )
    for line in plan.quality.lines(preset.data):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    try:
        check_memory(plan, room_here(preset.training))
    except UserError as error:
        console.print(f"It would be refused here: {error}", style="yellow", soft_wrap=True)


def left_out(plan: Plan) -> Iterator[str]:
    """Yield one line if target_modules=all-linear leaves out layers with weight matrices that no method can adapt."""
    values = [row.trial.hyperparameters for checked in plan.checked.values() for row in checked]
    layers = plan.model.not_linear
    if layers and any(value.get("target_modules") == "all-linear" for value in values):
        kinds = dict.fromkeys((kind, name.rpartition(".")[2]) for name, kind in layers.items())
        kinds_in_words = ", ".join(f"{name} ({kind})" for kind, name in kinds)
        yield f"target_modules all-linear leaves out {len(layers)} layers that no method adapts: {kinds_in_words}"


def announced(plan: Plan) -> str:
    """Return the number of trials of each stage, in words."""
    finals = len(plan.methods) * len(plan.search.seeds)
    counts = [plan.search_trials(method) for method in plan.methods]
    if not any(count is None or count for count in counts):
        return f"{finals} trials"
    if None in counts:
        search = f"search of {plan.search.budget:g} GPU-hours for each method"
    else:
        search = f"{sum(count or 0 for count in counts)} trials of search"
    return f"{search} ({plan.search.algorithm}), then {finals} final trials"


def changes(plan: Plan, saved: SavedSweep, earlier: Sequence[LedgerEntry], *, extended: bool) -> Iterator[str]:
    """Yield lines that say how a resumed or extended sweep differs from the saved one.

    They name changed settings, earlier trials that no longer belong to the plan, and (if `extended`) new trials.
    """
    current, outdated = plan.split(earlier)
    if changed := differences(saved.content, plan.content):
        yield f"Changed since: {'; '.join(changed)}."
    if outdated:
        yield (
            f"{len(outdated)} trials were made with settings that have changed since. They stay in MLflow, are left "
            "out of the comparison, and are made anew."
        )
    existing = {entry.trial.name for entry in earlier if entry.state in ("trained", "stopped")}
    new = [name for method in plan.methods for name, _ in _rows(plan, method, exact=True) if name not in existing]
    searched = [method for method in plan.methods if plan.points[method] != []]
    seeds = {entry.trial.seed for entry in current if entry.role == "final"}
    new_seeds = [str(seed) for seed in plan.search.seeds if seed not in seeds]
    if searched and new_seeds:
        new.append(f"the chosen configurations of {', '.join(searched)} with the seeds {', '.join(new_seeds)}")
    if new and extended:
        yield f"New: {', '.join(new)}"


def _rows(plan: Plan, method: str, *, exact: bool = False) -> Iterator[tuple[str, Checked]]:
    """Yield the label and the trial of each row of a method.

    Trials that are known beforehand are labelled with their names. Unless `exact`, the corners of the search space
    stand for search trials that are not known yet.
    """
    checked, seeds = plan.checked[method], plan.search.seeds
    points = plan.points[method]
    if points:
        for point, trial in zip(points, checked, strict=True):
            yield plan.trial(method, point, "search", plan.search.trial_seed).name, trial
    elif points is None and not exact:
        for trial in checked:
            yield f"{method}: within", trial
    if points == []:
        for seed in seeds:
            yield plan.trial(method, {}, "final", seed).name, checked[0]


def _search_in_words(plan: Plan, method: str) -> str:
    search, count = plan.search, plan.search_trials(method)
    order = {"grid": "points of the grid", "tpe": _PROPOSED, "bohb": _PROPOSED}.get(search.algorithm, "drawn at random")
    amount = f"{count} trials"
    if count is None:
        amount = f"as many trials as {search.budget:g} GPU-hours (worker-hours on CPUs) allow"
    size = plan.spaces[method].size
    out_of = f" of {size} points" if size is not None else ""
    stops = ", stopped where they fall behind," if search.stops_early else ""
    seeds = ", ".join(map(str, search.seeds))
    return (
        f"{amount}{out_of}, {order}{stops} with seed "
        f"{search.trial_seed}; then the one with the lowest validation loss with the seeds {seeds}"
    )


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.0f} MiB"
