"""The queue of a sweep's trials: each method's search, then its chosen configuration with fresh seeds.

The queue depends on neither Ray nor MLflow. Methods take turns. A method whose search has ended does not wait for the
searches of other methods.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from beamplatform.sweep.plan.ledger import LedgerEntry, LedgerState
from beamplatform.sweep.plan.plan import Plan
from beamplatform.sweep.plan.proposals import Tried, propose

_HOPELESS = 3
"""A method's search ends when this many of its trials fail in a row."""


class TrialQueue:
    """The trials of a sweep in the order in which they begin.

    Args:
        plan: the sweep's plan.
        earlier: entries of this plan that were begun before; new entries are added behind them.
        began: called with the index and the entry of each new trial, before `next` returns it.
        again: whether to try failed trials again.

    Attributes:
        entries: all trials begun so far; a trial's index is its position in this list.
        workers: index -> number of workers, for trials that have reported it.
    """

    def __init__(
        self,
        plan: Plan,
        earlier: Sequence[LedgerEntry] = (),
        began: Callable[[int, LedgerEntry], None] = lambda index, entry: None,
        *,
        again: bool = True,
    ) -> None:
        self.plan = plan
        self.entries = list(earlier)
        self.workers: dict[int, int] = {}
        self._began = began
        states_to_repeat = ("running", "failed") if again else ("running",)
        self._again = [index for index, entry in enumerate(earlier) if entry.state in states_to_repeat]
        for index in self._again:
            self._set(index, "running")
        self._since: dict[int, float] = {}
        self._unfit: dict[str, list[Tried]] = {method: [] for method in plan.methods}
        self._used_up: set[str] = set()

    @property
    def finished(self) -> bool:
        """Whether `next` will return no further trial, whatever the results of running trials."""
        return not self._again and all(self._begun(method) for method in self.plan.methods)

    @property
    def running(self) -> int:
        """How many trials were handed out and have not ended."""
        return sum(entry.state == "running" for entry in self.entries) - len(self._again)

    @property
    def to_come(self) -> int:
        """How many trials have not ended, begun or not. A budget's trials count only once they have begun."""
        ended = sum(entry.state != "running" for entry in self.entries)
        return max(self.plan.expected - ended, len(self.entries) - ended)

    def next(self) -> int | None:
        """Return the index of the trial to begin now.

        None means that the next trial depends on results to come, or that no trial is left (`finished`).
        """
        if self._again:
            return self._again.pop(0)
        for next_of in (self._next_search, self._next_final):  # searches first: final trials wait for them
            for method in sorted(self.plan.methods, key=lambda method: len(self._of(method))):
                entry = next_of(method)
                if entry is not None:
                    self.entries.append(entry)
                    index = len(self.entries) - 1
                    self._began(index, entry)
                    return index
        return None

    def again(self, index: int) -> None:
        """Hand the trial out once more, although it has not ended."""
        self._since.pop(index, None)
        self._again.append(index)

    def started(self, index: int) -> None:
        """Count the trial's hours up to now. It is called at each report, and counting starts at the first call."""
        now = time.monotonic()
        if index in self._since:
            training = self.entries[index].trial.training
            workers = self.workers.get(index, training.most_workers) * training.gpus_per_worker
            self.entries[index].hours += workers * (now - self._since[index]) / 3600
        self._since[index] = now

    def measured(self, index: int, step: int, loss: float) -> None:
        """Append the validation loss after an optimizer step to the trial's curve."""
        curve = self.entries[index].curve
        if not curve or curve[-1][0] < step:  # a worker that was started again repeats its last steps
            curve.append((step, loss))

    def ended(self, index: int, state: LedgerState, why: str = "") -> None:
        """Record that the trial was trained to its end, was stopped or has failed."""
        if index in self._since:
            self.started(index)
            del self._since[index]
        self._set(index, state, why)

    def chosen(self, method: str) -> LedgerEntry | None:
        """The search's trained trial with the lowest validation loss; None if no such trial has a finite loss."""
        trained = [e for e in self._of(method, "search") if e.state == "trained" and e.loss is not None]
        finite = [e for e in trained if math.isfinite(e.loss or 0.0)]
        return min(finite, key=lambda e: (e.loss, e.trial.name), default=None)

    def _next_search(self, method: str) -> LedgerEntry | None:
        if self._searched(method):
            return None
        plan, entries = self.plan, self._of(method, "search")
        while True:
            tried = [Tried(e.point, e.state, e.curve) for e in entries] + self._unfit[method]
            point = propose(plan.spaces[method], plan.search, tried)
            if point is None:
                self._used_up.add(method)
                return None
            trial = plan.trial(method, point, "search", plan.search.trial_seed)
            try:
                plan.check(trial)
            except ValueError:  # the corners of the space were checked, so this is rare
                self._unfit[method].append(Tried(point, "unfit"))
                continue
            return LedgerEntry(trial, "search", point, weights=plan.search.evaluate == "all")

    def _next_final(self, method: str) -> LedgerEntry | None:
        plan = self.plan
        if not self._searched(method) or any(entry.state == "running" for entry in self._of(method, "search")):
            return None
        best = self.chosen(method)
        if best is None and plan.spaces[method].size != 1:
            return None  # every trial of the search has failed
        point = best.point if best is not None else plan.spaces[method].corners()[0]
        values = plan.spaces[method].resolve(point)
        begun = {entry.trial.seed for entry in self._of(method, "final") if entry.trial.hyperparameters == values}
        seed = next((seed for seed in plan.search.seeds if seed not in begun), None)
        return None if seed is None else LedgerEntry(plan.trial(method, point, "final", seed), "final", point)

    def _searched(self, method: str) -> bool:
        """Whether no further trial of the method's search will begin."""
        if self.plan.spaces[method].size == 1 or method in self._used_up:
            return True
        entries = self._of(method, "search")
        if len(entries) >= _HOPELESS and all(entry.state == "failed" for entry in entries[-_HOPELESS:]):
            return True
        budget = self.plan.search.budget
        if budget is None:
            return len(entries) >= self.plan.search.trials
        running = [entry for entry in entries if entry.state == "running"]
        hours = [entry.hours for entry in entries if entry.state in ("trained", "stopped")]
        if not any(hours):  # one trial at a time until one trial's hours are known
            return bool(running)
        mean = sum(hours) / len(hours)
        expected = sum(max(mean, entry.hours) for entry in running) + mean
        return sum(entry.hours for entry in entries if entry not in running) + expected > budget

    def _begun(self, method: str) -> bool:
        """Whether all trials of the method have begun."""
        if not self._searched(method) or any(entry.state == "running" for entry in self._of(method, "search")):
            return False
        return self._next_final(method) is None

    def _of(self, method: str, role: str | None = None) -> list[LedgerEntry]:
        return [e for e in self.entries if e.trial.method == method and role in (None, e.role)]

    def _set(self, index: int, state: LedgerState, why: str = "") -> None:
        self.entries[index].state, self.entries[index].why = state, why
