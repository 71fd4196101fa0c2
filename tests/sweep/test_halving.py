"""Which trials of a search are stopped: decisions of Ray's own successive halving, each method by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from small import RATES

from beamplatform.sweep.trials.early_stopping import SearchScheduler, scheduler_of
from beamplatform.sweep.trials.trial_queue import TrialQueue


def report(scheduler: SearchScheduler, index: int, step: int, loss: float) -> str:
    trial: Any = SimpleNamespace(config={"index": index}, trial_id=f"t{index}")
    return scheduler.on_trial_result(None, trial, {"step": step, "rows": [(step, {"validation/loss": loss})]})


def begun(queue: TrialQueue, count: int) -> None:
    for _ in range(count):
        queue.next()


def test_a_trial_behind_the_best_third_of_its_own_method_is_stopped(plan) -> None:
    both = plan("lora", "dora", shared__learning_rate=RATES, search__algorithm="asha", search__trials=6)
    queue = TrialQueue(both)
    begun(queue, 8)  # lora and dora in turn
    scheduler = scheduler_of(both, queue.entries)
    assert scheduler is not None
    assert report(scheduler, 0, 12, 1.0) == "CONTINUE" and report(scheduler, 2, 12, 0.9) == "CONTINUE"
    assert report(scheduler, 4, 12, 2.0) == "STOP"
    assert scheduler.reasons[4] == (
        "stopped by ASHA at step 12: validation loss 2 is not among the best 1/3 of the 3 trials of lora that reached "
        "step 12"
    )
    assert report(scheduler, 1, 12, 9.0) == "CONTINUE", "dora's first is not set against lora's"
    assert report(scheduler, 0, 20, 5.0) == "CONTINUE", "between rungs nothing is decided"
    assert report(scheduler, 2, 36, 0.5) == "CONTINUE" and report(scheduler, 0, 36, 0.6) == "STOP"


def test_final_trials_are_never_stopped(plan) -> None:
    asha = plan("lora", methods__lora__learning_rate=RATES, search__algorithm="asha", search__trials=3)
    queue = TrialQueue(asha)
    for _ in range(3):
        index = queue.next()
        queue.measured(index, 12, 0.1)
        queue.ended(index, "trained")
    final = queue.next()
    scheduler = scheduler_of(asha, queue.entries)
    assert queue.entries[final].role == "final" and report(scheduler, final, 12, 99.0) == "CONTINUE"
    assert scheduler_of(plan("lora"), []) is None


def test_a_resumed_search_remembers_what_earlier_trials_reached(plan) -> None:
    asha = plan("lora", methods__lora__learning_rate=RATES, search__algorithm="asha", search__trials=6)
    queue = TrialQueue(asha)
    for loss in (0.2, 0.3, 0.4):
        index = queue.next()
        queue.measured(index, 12, loss)
        queue.ended(index, "stopped", "before")
    last = queue.next()
    assert report(scheduler_of(asha, queue.entries), last, 12, 0.5) == "STOP"
    fresh = TrialQueue(asha, queue.entries[3:])
    assert report(scheduler_of(asha, fresh.entries), 0, 12, 0.5) == "CONTINUE", "the first at a rung stays"


@pytest.mark.parametrize("algorithm", ["hyperband", "bohb"])
def test_hyperband_gives_trials_different_patience(plan, algorithm: str) -> None:
    many = plan("lora", methods__lora__learning_rate=RATES, search__algorithm=algorithm, search__trials=40)
    queue = TrialQueue(many)
    begun(queue, 40)
    scheduler = scheduler_of(many, queue.entries)
    decided: dict[int, list[int]] = {}
    for index in range(40):
        # Each is worse than all before it, so it is stopped at the first rung of its bracket, but for the first there.
        steps = [step for step in (12, 36, 60) if report(scheduler, index, step, 1.0 + index) == "STOP"]
        decided.setdefault(steps[0] if steps else 0, []).append(index)
    assert set(decided) == {0, 12, 36}
    assert len(decided[12]) > len(decided[36]) > 0 and len(decided[0]) > 2, "9 : 5 : 3"


def test_every_method_gets_the_same_brackets_and_a_resumed_trial_the_steps_it_was_measured_at(plan) -> None:
    both = plan("lora", "dora", shared__learning_rate=RATES, search__algorithm="hyperband", search__trials=17)
    queue = TrialQueue(both)
    begun(queue, 34)
    scheduler = scheduler_of(both, queue.entries)
    dealt = {m: [scheduler._bracket(e) for e in queue.entries if e.trial.method == m] for m in ("lora", "dora")}
    assert dealt["lora"] == dealt["dora"] and sorted(dealt["lora"]) == [0] * 9 + [1] * 5 + [2] * 3
    first = next(i for i, e in enumerate(queue.entries) if scheduler._bracket(e) == 0)
    trial: Any = SimpleNamespace(config={"index": first}, trial_id="t")
    rows = [(12, {"validation/loss": 1.0}), (36, {"validation/loss": 0.3}), (40, {"train/loss": 0.1})]
    assert scheduler.on_trial_result(None, trial, {"step": 50, "rows": rows}) == "CONTINUE"
    second = next(i for i, e in enumerate(queue.entries) if scheduler._bracket(e) == 0 and i > first + 1 and
                  e.trial.method == queue.entries[first].trial.method)  # fmt: skip
    assert report(scheduler, second, 12, 0.9) == "CONTINUE", "0.3 was reached at step 36 only"
