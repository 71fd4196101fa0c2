"""Stops search trials that fall behind: successive halving, separately for each method."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from beamplatform.metrics import VALIDATION_LOSS, validation_curve
from beamplatform.sweep.plan.ledger import LedgerEntry
from beamplatform.sweep.plan.plan import Plan, grace_period
from beamplatform.sweep.trials.tune_actor import INDEX

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

NAMES = {"asha": "ASHA", "hyperband": "Hyperband", "bohb": "BOHB"}
_DEAL = (0,) * 9 + (1,) * 5 + (2,) * 3
"""Hyperband's three brackets, as they are dealt to each group of 17 trials.

Their shares are n = (s_max + 1) / (s + 1) * 3^s (Li et al. 2018, Algorithm 1), where s is 2, 1 and 0 for our brackets
0, 1 and 2. Bracket b begins to stop trials b rungs later than bracket 0. All methods are dealt the brackets in the same
order, so that no method is stopped more than another."""


@dataclass(frozen=True)
class _Halving:
    """One bracket of one method, and the indices of the trials that have reached each of its rungs."""

    scheduler: AsyncHyperBandScheduler
    rungs: tuple[int, ...]
    reached: dict[int, set[int]]
    added: set[int] = field(default_factory=set)


class SearchScheduler(FIFOScheduler):
    """Ray's asynchronous successive halving (ASHA, Li et al. 2020) for every method of a search.

    A trial is compared only with trials of its own method, and final trials are never stopped. Hyperband and bohb
    assign each trial to one of three brackets by its number among the method's search trials.

    Args:
        entries: the queue's own list, which grows; a trial's index is its position. The losses that earlier trials
            reached count as well.
    """

    def __init__(self, plan: Plan, entries: Sequence[LedgerEntry]) -> None:
        super().__init__()
        self._plan = plan
        self._entries = entries
        self._halvings: dict[tuple[str, int], _Halving | None] = {}
        self.reasons: dict[int, str] = {}
        for index, entry in enumerate(entries):
            for step, loss in entry.curve if entry.state != "running" else ():
                self._judge(index, step, loss)

    def __getstate__(self) -> dict[str, Any]:
        """Keep the scheduler out of the experiment's state that Tune writes: a sweep resumes from the ledger."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        index = trial.config[INDEX]
        # Judge each loss at the step of its measurement, because a resumed trial also sends its earlier losses.
        decisions = [self._judge(index, step, loss) for step, loss in validation_curve(result.get("rows") or ())]
        return next((each for each in decisions if each == TrialScheduler.STOP), str(TrialScheduler.CONTINUE))

    def _judge(self, index: int, step: int, loss: float) -> str:
        entry = self._entries[index]
        halving = self._halving(entry) if entry.role == "search" else None
        if halving is None or step >= self._plan.steps(entry.trial.method):
            return str(TrialScheduler.CONTINUE)
        passed = [rung for rung in halving.rungs if step >= rung]
        for rung in passed[-1:]:
            halving.reached[rung].add(index)
        tune_trial = SimpleNamespace(trial_id=str(index))
        if index not in halving.added:
            halving.added.add(index)
            halving.scheduler.on_trial_add(None, tune_trial)
        decision = str(halving.scheduler.on_trial_result(None, tune_trial, {"step": step, VALIDATION_LOSS: loss}))
        if decision == TrialScheduler.STOP:
            reached = len(halving.reached[passed[-1]])
            name = NAMES[self._plan.search.algorithm]
            self.reasons[index] = (
                f"stopped by {name} at step {step}: validation loss {loss:.4g} is not among the best "
                f"1/{self._plan.search.reduction} of the {reached} trials of {entry.trial.method} that reached step "
                f"{passed[-1]}"
            )
        return decision

    def _halving(self, entry: LedgerEntry) -> _Halving | None:
        method, bracket = entry.trial.method, self._bracket(entry)
        if (method, bracket) not in self._halvings:
            self._halvings[method, bracket] = self._made(method, bracket)
        return self._halvings[method, bracket]

    def _made(self, method: str, bracket: int) -> _Halving | None:
        total, reduction = self._plan.steps(method), self._plan.search.reduction
        grace = grace_period(total, reduction) * reduction**bracket
        if grace >= total:
            return None  # trials of this bracket train to the end
        rungs = tuple(grace * reduction**k for k in range(3) if grace * reduction**k < total)
        scheduler = AsyncHyperBandScheduler(
            "step",
            metric=VALIDATION_LOSS,
            mode="min",
            max_t=total,
            grace_period=grace,
            reduction_factor=reduction,
            brackets=1,
        )
        return _Halving(scheduler, rungs, {rung: set() for rung in rungs})

    def _bracket(self, entry: LedgerEntry) -> int:
        if self._plan.search.algorithm == "asha":
            return 0
        trials = [e for e in self._entries if e.role == "search" and e.trial.method == entry.trial.method]
        round_, position = divmod(next(i for i, e in enumerate(trials) if e is entry), len(_DEAL))
        return random.Random(f"brackets {self._plan.search.seed} {round_}").sample(_DEAL, len(_DEAL))[position]


def scheduler_of(plan: Plan, entries: Sequence[LedgerEntry]) -> SearchScheduler | None:
    """Make the scheduler of a plan; None if its search stops no trial early."""
    return SearchScheduler(plan, entries) if plan.search.stops_early else None
