"""What a sweep does next, on real plans; no trial runs here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small import RATES

from beamplatform.sweep.plan.ledger import load_ledger, save_ledger
from beamplatform.sweep.trials import trial_queue as module
from beamplatform.sweep.trials.trial_queue import TrialQueue


def run(queue: TrialQueue, loss: Callable[[Any], float], concurrent: int = 1) -> list[int]:
    """Train everything, so many at a time; the order in which trials began."""
    order: list[int] = []
    running: list[int] = []
    while True:
        while len(running) < concurrent and (index := queue.next()) is not None:
            order.append(index)
            running.append(index)
            queue.started(index)
        if not running:
            assert queue.finished
            return order
        index = running.pop(0)
        queue.measured(index, 100, loss(queue.entries[index].trial))
        queue.ended(index, "trained")


def test_each_method_is_searched_and_its_best_is_trained_with_fresh_seeds(plan) -> None:
    both = plan("beamlora", "lora", shared__learning_rate=RATES, search__trials=4, search__seeds=[0, 1])
    queue = TrialQueue(both)
    run(queue, lambda trial: abs(trial.hyperparameters["learning_rate"] - 1e-3), concurrent=3)
    for method in ("beamlora", "lora"):
        own = [entry for entry in queue.entries if entry.trial.method == method]
        search, final = ([entry for entry in own if entry.role == role] for role in ("search", "final"))
        assert len(search) == 4 and {entry.trial.seed for entry in search} == {1000}, "the same budget for every method"
        best = min(search, key=lambda entry: abs(entry.point["learning_rate"] - 1e-3))
        assert [entry.trial.seed for entry in final] == [0, 1]
        assert {entry.trial.configuration for entry in final} == {best.trial.configuration}
    begun = [entry.role for entry in queue.entries]
    assert begun[:8] == ["search"] * 8, "final trials wait for searches, so these come first"
    assert [entry.trial.method for entry in queue.entries[:4]] == ["beamlora", "lora"] * 2


def test_whose_models_are_kept_and_asked(plan) -> None:
    """Test questions are for final trials, unless somebody wants pictures of the search's accuracy."""
    for evaluate, of_the_search in (("chosen", False), ("all", True)):
        queue = TrialQueue(plan("lora", shared__learning_rate=RATES, search__trials=2, search__evaluate=evaluate))
        run(queue, lambda trial: 1.0)
        assert [entry.weights for entry in queue.entries] == [of_the_search] * 2 + [True] * 2


def test_a_method_with_nothing_to_search_is_trained_at_once(plan) -> None:
    queue = TrialQueue(
        plan("lora", "dora", methods__lora__r={"choice": [4, 8]}, search__seeds=[0, 1], search__trials=8)
    )
    run(queue, lambda trial: 1.0)
    roles = [(entry.trial.method, entry.role) for entry in queue.entries]
    assert roles.count(("lora", "search")) == 2 and roles.count(("lora", "final")) == 2
    assert roles.count(("dora", "search")) == 0 and roles.count(("dora", "final")) == 2


def test_only_trials_that_came_to_their_end_are_chosen(plan) -> None:
    queue = TrialQueue(plan("lora", methods__lora__r={"choice": [2, 4, 8, 16]}, search__trials=4))
    for state, loss in (("stopped", 0.1), ("failed", 0.2), ("trained", 0.4), ("trained", 0.3)):
        index = queue.next()
        queue.measured(index, 10, loss)
        queue.ended(index, state)
    index = queue.next()
    assert queue.entries[index].role == "final" and queue.entries[index].point == queue.entries[3].point


def test_where_all_of_a_search_fails_there_is_no_final_trial(plan) -> None:
    queue = TrialQueue(plan("lora", methods__lora__learning_rate=RATES, search__trials=8))
    for _ in range(3):
        queue.ended(queue.next(), "failed", "why")
    assert queue.next() is None and queue.finished, "three failures and no success are enough"


def test_a_budget_is_the_same_for_cheap_and_dear_methods(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    queue = TrialQueue(plan("lora", "dora", shared__learning_rate=RATES, search__budget=1.0, search__trials=1))
    while (index := queue.next()) is not None:
        entry = queue.entries[index]
        queue.started(index)
        now[0] += 3600 * (0.09 if entry.trial.method == "lora" else 0.3)
        queue.measured(index, 100, 1.0)
        queue.ended(index, "trained")
    hours = {}
    for method in ("lora", "dora"):
        search = [e for e in queue.entries if e.trial.method == method and e.role == "search"]
        hours[method] = (len(search), sum(entry.hours for entry in search))
    assert hours["lora"] == (11, pytest.approx(0.99)) and hours["dora"] == (3, pytest.approx(0.9))


def test_it_goes_on_where_it_was_interrupted_from_the_ledger(plan, tmp_path: Path) -> None:
    same = plan("lora", "dora", shared__learning_rate=RATES, search__algorithm="tpe", search__trials=6)

    def loss(trial: Any) -> float:
        return float(trial.hyperparameters["learning_rate"])

    whole = TrialQueue(same)
    run(whole, loss)
    part = TrialQueue(same)
    for _ in range(5):
        index = part.next()
        part.measured(index, 100, loss(part.entries[index].trial))
        part.ended(index, "trained")
    running = part.next()
    save_ledger(str(tmp_path), "s", part.entries)
    rest = TrialQueue(same, load_ledger(str(tmp_path), "s"))
    assert run(rest, loss)[0] == running, "what was interrupted comes first"
    assert [entry.trial for entry in rest.entries] == [entry.trial for entry in whole.entries]


def test_an_extension_runs_nothing_again(plan) -> None:
    small = TrialQueue(plan("lora", shared__learning_rate=RATES, search__trials=3, search__seeds=[0]))
    run(small, lambda trial: abs(trial.hyperparameters["learning_rate"] - 1e-3))
    before = copy.deepcopy(small.entries)
    more = TrialQueue(
        plan("lora", "dora", shared__learning_rate=RATES, search__trials=5, search__seeds=[0, 1]), small.entries
    )
    begun = run(more, lambda trial: abs(trial.hyperparameters["learning_rate"] - 1e-3))
    assert begun == list(range(4, len(more.entries))) and more.entries[:4] == before
    roles = [(entry.trial.method, entry.role) for entry in more.entries]
    assert roles.count(("lora", "search")) == 5 and roles.count(("dora", "search")) == 5


def test_a_changed_space_takes_over_only_what_lies_in_it(plan) -> None:
    """Each of these changes a value that was fixed, or where a value may lie."""
    first = plan("lora", methods__lora__learning_rate=RATES, search__trials=3)
    known = TrialQueue(first)
    run(known, lambda trial: 1.0)
    assert all(first.holds(entry) for entry in known.entries)
    wider = plan("lora", methods__lora__learning_rate={"loguniform": [1e-5, 1e-1]}, search__trials=5)
    assert all(wider.holds(entry) for entry in known.entries)
    for changed in (
        plan("lora", methods__lora__learning_rate=RATES, methods__lora__r=16),
        plan("lora", methods__lora__learning_rate=5e-3),
        plan("dora", methods__dora__learning_rate=RATES),
        plan("lora", methods__lora__learning_rate={"loguniform": [1e-7, 1e-6]}),
        plan("lora", methods__lora__learning_rate=RATES, search__trial_seed=7),
    ):
        assert not any(changed.holds(entry) for entry in known.entries if entry.role == "search")


def test_an_extension_leaves_alone_what_failed_and_a_resumption_tries_it_again(plan) -> None:
    known = TrialQueue(plan("lora", search__seeds=[0, 1]))
    known.ended(known.next(), "failed", "why")
    known.ended(known.next(), "trained")
    assert TrialQueue(known.plan, copy.deepcopy(known.entries)).next() == 0
    extended = TrialQueue(plan("lora", search__seeds=[0, 1, 2]), copy.deepcopy(known.entries), again=False)
    assert extended.next() == 2 and extended.next() is None and extended.finished


def test_a_trial_that_was_lost_is_handed_out_again(plan) -> None:
    queue = TrialQueue(plan("lora", search__seeds=[0]))
    assert queue.next() == 0 and queue.finished and queue.running == 1
    queue.again(0)
    assert not queue.finished and queue.running == 0 and queue.next() == 0 and queue.running == 1


def test_a_budget_is_not_used_up_by_trials_that_fail_at_once(plan) -> None:
    queue = TrialQueue(plan("lora", shared__learning_rate=RATES, search__budget=1.0))
    assert queue.next() is not None and queue.next() is None, "one by one until one shows what it takes"
    queue.ended(0, "failed", "at once")
    assert queue.next() == 1 and queue.next() is None


def test_what_decides_the_outcome_is_the_context_and_the_name(plan) -> None:
    base = plan("lora")
    name = base.trial("lora", {}, "final", 0).name
    same = plan("lora", training__log_every=7, training__checkpoint_every=50, evaluation__batch_size=3)
    assert same.context == base.context and same.trial("lora", {}, "final", 0).name == name
    for change in ({"training__max_steps": 50}, {"data__validation_records": 9}, {"data__max_length": 64}):
        other = plan("lora", **change)
        assert other.context != base.context and other.trial("lora", {}, "final", 0).name != name
    rank = plan("lora", methods__lora__r=4)
    assert rank.context == base.context and rank.trial("lora", {}, "final", 0).name != name


def test_asha_validates_at_its_rungs(plan) -> None:
    asha = plan("lora", methods__lora__learning_rate=RATES, search__algorithm="asha")
    searched = asha.trial("lora", {"learning_rate": 1e-3}, "search", 1000)
    final = asha.trial("lora", {"learning_rate": 1e-3}, "final", 0)
    assert searched.training.validate_every == 12 and final.training.validate_every is None
    assert searched.configuration == final.configuration, "when it is validated is no part of what it is"
