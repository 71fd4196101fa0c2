"""The numbers of a comparison, against cases worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from beamplatform.errors import UserError
from beamplatform.report import Cell, Comparison, Row, compare
from beamplatform.tracking.runs import TrialRecord


def trial(
    method: str,
    configuration: str,
    seed: int,
    loss: float | None,
    scores: dict[str, float],
    *,
    status: str = "FINISHED",
    started: int = 0,
    role: str = "",
    context: str = "",
    **params: str,
) -> TrialRecord:
    metrics = {f"eval/{task}": score for task, score in scores.items()}
    if loss is not None:
        metrics["validation/loss"] = loss
    return TrialRecord(
        run_id=f"{method}{configuration}{seed}{started}",
        name=f"{method}-{configuration}-seed{seed}",
        method=method,
        seed=seed,
        params={"seed": str(seed), **params},
        metrics=metrics,
        status=status,
        sweep="s",
        configuration=configuration,
        preset="tiny",
        started=started,
        role=role,
        context=context,
    )


def row_of(comparison: Comparison, method: str) -> Row:
    return next(row for row in comparison.rows if row.method == method)


def cell_of(comparison: Comparison, method: str, task: str) -> Cell:
    cell = row_of(comparison, method).cells[task]
    assert cell is not None
    return cell


def test_mean_and_standard_error_over_seeds() -> None:
    scores = [0.60, 0.66, 0.72]
    runs = [trial("lora", "c", seed, 1.0, {"boolq": score}) for seed, score in enumerate(scores)]
    cell = cell_of(compare(runs), "lora", "boolq")
    assert cell.values == (0.60, 0.66, 0.72)
    assert cell.mean == pytest.approx(0.66)
    # Deviations -0.06, 0, 0.06: variance 0.0072 / (3 - 1) = 0.0036, deviation 0.06, over the root of 3.
    assert cell.standard_error == pytest.approx(0.06 / math.sqrt(3))
    single = cell_of(compare(runs[:1]), "lora", "boolq")
    assert single.mean == 0.60 and single.standard_error is None


def test_average_is_over_tasks_first_then_seeds() -> None:
    runs = [
        trial("lora", "c", 0, 1.0, {"boolq": 0.5, "piqa": 0.7, "average": 0.99}),
        trial("lora", "c", 1, 1.0, {"boolq": 0.7, "piqa": 0.7, "average": 0.99}),
    ]
    comparison = compare(runs)
    assert comparison.tasks == ("boolq", "piqa"), "the recorded average is no task"
    average = comparison.rows[0].average
    assert average is not None
    assert average.values == pytest.approx((0.6, 0.7)) and average.mean == pytest.approx(0.65)
    # Deviations +-0.05: variance 0.005, over 2 seeds: sqrt(0.0025) = 0.05.
    assert average.standard_error == pytest.approx(0.05)
    only = compare(runs, tasks=["boolq"]).rows[0].average
    assert only is not None and only.mean == pytest.approx(0.6)


def test_configuration_is_chosen_by_mean_validation_loss_and_never_by_score() -> None:
    runs = [
        # The better scores, and the single lowest loss, but a mean loss of 1.10.
        trial("lora", "a", 0, 0.80, {"boolq": 0.9}, r="8"),
        trial("lora", "a", 1, 1.40, {"boolq": 0.9}, r="8"),
        trial("lora", "b", 0, 1.00, {"boolq": 0.6}, r="16"),
        trial("lora", "b", 1, 1.10, {"boolq": 0.6}, r="16"),
    ]
    row = compare(runs).rows[0]
    assert (row.configuration, row.candidates, row.choice) == ("b", 2, "lowest validation loss")
    assert row.validation_loss == pytest.approx(1.05)
    assert row.settings == {"r": "16"}, "what differs between the candidates, the seed left aside"
    assert row.names == ("lora-b-seed0", "lora-b-seed1")
    assert cell_of(compare(runs), "lora", "boolq").mean == pytest.approx(0.6)


def test_a_seed_is_no_setting() -> None:
    runs = [
        trial("lora", "a", 0, 1.0, {"boolq": 0.5}, r="8"),
        trial("lora", "b", 1, 2.0, {"boolq": 0.5}, r="8"),
    ]
    assert compare(runs).rows[0].settings == {}


def test_equal_losses_are_decided_by_name() -> None:
    runs = [trial("lora", name, 0, 1.0, {"boolq": score}) for name, score in (("b", 0.9), ("a", 0.1))]
    assert compare(runs).rows[0].configuration == "a"
    assert compare(runs[::-1]).rows[0].configuration == "a"


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_diverged_configuration_is_not_chosen(bad: float | None) -> None:
    runs = [
        trial("lora", "a", 0, 0.1, {"boolq": 0.9}),
        trial("lora", "a", 1, bad, {"boolq": 0.9}),
        trial("lora", "b", 0, 5.0, {"boolq": 0.5}),
    ]
    assert compare(runs).rows[0].configuration == "b"
    alone = compare(runs[:2]).rows[0]
    assert (alone.configuration, alone.choice, alone.validation_loss) == ("a", "only one", None)


def test_a_configuration_with_a_failed_seed_is_not_chosen_by_its_survivor() -> None:
    """The platform records a diverged trial as FAILED."""
    runs = [
        trial("lora", "a", 0, 0.1, {"boolq": 0.9}),
        replace(trial("lora", "a", 1, None, {}), status="FAILED"),
        trial("lora", "b", 0, 5.0, {"boolq": 0.5}),
        trial("lora", "b", 1, 5.0, {"boolq": 0.5}),
    ]
    assert compare(runs).rows[0].configuration == "b"
    assert compare(runs[:2]).rows[0].validation_loss is None


def test_without_tasks_methods_are_compared_by_validation_loss() -> None:
    runs = [trial("lora", "a", seed, loss, {}) for seed, loss in ((0, 1.0), (1, 3.0))]
    comparison = compare(runs)
    assert comparison.tasks == ()
    assert (comparison.rows[0].validation_loss, comparison.rows[0].average) == (2.0, None)


def test_without_any_loss_the_first_name_stands_and_says_so() -> None:
    runs = [trial("lora", name, 0, None, {"boolq": score}) for name, score in (("b", 0.9), ("a", 0.1))]
    row = compare(runs).rows[0]
    assert (row.configuration, row.choice, row.validation_loss) == ("a", "first by name", None)


def test_best_is_marked_in_each_column_of_its_own() -> None:
    runs = [
        trial("beamlora", "c", 0, 1.0, {"boolq": 0.70, "piqa": 0.60}),
        trial("lora", "c", 0, 1.0, {"boolq": 0.65, "piqa": 0.62}),
        trial("dora", "c", 0, 1.0, {"boolq": 0.65, "piqa": 0.62}),
    ]
    comparison = compare(runs)
    best = {(row.method, task) for row in comparison.rows for task, cell in row.cells.items() if cell and cell.best}
    assert best == {("beamlora", "boolq"), ("lora", "piqa"), ("dora", "piqa")}
    assert [row.average is not None and row.average.best for row in comparison.rows] == [True, False, False]


def test_a_lone_method_is_best_of_nothing() -> None:
    assert not cell_of(compare([trial("lora", "c", 0, 1.0, {"boolq": 0.7})]), "lora", "boolq").best


def test_close_to_the_best_is_within_one_standard_error_of_the_difference() -> None:
    def pair(method: str, low: float, high: float) -> list[TrialRecord]:
        return [trial(method, "c", seed, 1.0, {"boolq": score}) for seed, score in enumerate((low, high))]

    # Standard errors: half the distance of the two seeds. Best 0.80 +- 0.03, lora 0.76 +- 0.04: 0.04 apart,
    # against hypot(0.03, 0.04) = 0.05; dora 0.74 +- 0.04: 0.06 apart, against 0.05.
    runs = pair("beamlora", 0.77, 0.83) + pair("lora", 0.72, 0.80) + pair("dora", 0.70, 0.78)
    comparison = compare(runs)
    assert [cell_of(comparison, name, "boolq").close for name in ("beamlora", "lora", "dora")] == [
        False,
        True,
        False,
    ]
    single = compare([*runs[:2], runs[2]])
    assert not cell_of(single, "lora", "boolq").close, "one seed has no standard error"


def test_methods_stand_as_given_and_tasks_as_their_benchmarks_list_them() -> None:
    scores = {"zebra": 0.1, "openbookqa": 0.1, "boolq": 0.1, "hellaswag": 0.1}
    runs = [trial(method, "c", 0, 1.0, scores) for method in ("lora", "beamlora", "dora")]
    assert compare(runs).tasks == ("boolq", "hellaswag", "openbookqa", "zebra")
    assert [row.method for row in compare(runs).rows] == ["lora", "beamlora", "dora"]
    chosen = compare(runs, methods=["dora", "lora"], tasks=["zebra", "boolq"])
    assert [row.method for row in chosen.rows] == ["dora", "lora"] and chosen.tasks == ("zebra", "boolq")
    with pytest.raises(UserError, match="no scores of the method lara; there are scores of lora, beamlora"):
        compare(runs, methods=["lara"])
    with pytest.raises(UserError, match="no scores of the task math"):
        compare(runs, tasks=["math"])


def test_the_newest_of_repeated_trials_counts() -> None:
    runs = [
        trial("lora", "c", 0, 1.0, {"boolq": 0.9}, started=2),
        trial("lora", "c", 0, 1.0, {"boolq": 0.1}, started=1),
    ]
    for order in (runs, runs[::-1]):
        assert cell_of(compare(order), "lora", "boolq").values == (0.9,)


def test_trials_without_scores_are_left_out_by_name() -> None:
    good = trial("lora", "c", 0, 1.0, {"boolq": 0.9})
    failed = trial("lora", "d", 0, 0.1, {"boolq": 0.9}, status="FAILED")
    unscored = trial("lora", "e", 0, 0.1, {"average": 0.9})
    comparison = compare([failed, good, unscored])
    assert comparison.left_out == ("lora-d-seed0 (FAILED)", "lora-e-seed0 (without scores)")
    assert comparison.rows[0].candidates == 1
    unrecorded = trial("lora", "f", 0, None, {})
    with pytest.raises(UserError, match=r"no finished trial with scores .*: 1 FAILED, 1 without scores"):
        compare([failed, unrecorded])
    with pytest.raises(UserError, match="it has no trials"):
        compare([])


def test_a_missing_task_leaves_a_gap_and_no_average() -> None:
    runs = [
        trial("lora", "c", 0, 1.0, {"boolq": 0.9, "piqa": 0.8}),
        trial("dora", "c", 0, 1.0, {"boolq": 0.7}),
        replace(trial("full", "c", 0, 1.0, {"boolq": 0.7}), metrics={"eval/boolq": 0.7, "eval/piqa": math.nan}),
    ]
    comparison = compare(runs)
    for method in ("dora", "full"):
        assert row_of(comparison, method).cells["piqa"] is None
        assert row_of(comparison, method).average is None
    assert cell_of(comparison, "lora", "boolq").best


def test_an_uneven_comparison_says_so() -> None:
    """Against LoRA: 1.02 times is even, 1.5 times is not, however it ends; nor are unequal seeds and searches."""
    sizes = {"lora": (100, 100), "beamlora": (102, 102), "adalora": (150, 100), "full": (1600, 1600)}
    runs = []
    for method, (first, last) in sizes.items():
        run = trial(method, "c", 0, 1.0, {"boolq": 0.5})
        counted = {"train/trainable_parameters": first, "train/final_parameters": last}
        runs.append(replace(run, metrics={**run.metrics, **counted}))
    comparison = compare(runs)
    assert comparison.uneven == (
        "AdaLoRA trains 1.50 times the parameters of LoRA (1.00 times at the end)",
        "Full fine-tuning trains 16.00 times the parameters of LoRA",
    )
    assert (row_of(comparison, "adalora").parameters, row_of(comparison, "adalora").kept) == (150, 100)
    more = [*runs[:2], trial("beamlora", "c", 1, 1.0, {"boolq": 0.5}), trial("lora", "d", 0, 2.0, {"boolq": 0.5})]
    assert compare(more).uneven == (
        "BeamLoRA has 2 seeds, LoRA 1",
        "BeamLoRA was chosen from 1 configurations, LoRA from 2",
    )


def test_notes_on_scores_come_with_the_trials() -> None:
    runs = [replace(trial("lora", "a", 0, 1.0, {"boolq": 0.5}), notes={"boolq": "a variant", "gone": "of no column"})]
    assert compare(runs).notes == {"boolq": "a variant"}


def searched(method: str, losses: dict[str, float | None], chosen: str, scores: list[float]) -> list[TrialRecord]:
    """A method's search (a loss for each configuration; None: stopped at 0.01) and its final trials."""
    search = [
        trial(method, name, 1000, 0.01 if loss is None else loss, {}, role="search", r=name,
              status="KILLED" if loss is None else "FINISHED")
        for name, loss in losses.items()
    ]  # fmt: skip
    search = [
        replace(run, metrics=dict(run.metrics) | {"train/seconds": 900.0, "train/workers": 2.0}) for run in search
    ]
    final = [trial(method, chosen, seed, 5.0, {"boolq": s}, role="final", r=chosen) for seed, s in enumerate(scores)]
    return search + final


def test_the_searchs_losses_choose_and_the_final_trials_are_compared() -> None:
    runs = searched("lora", {"a": 0.3, "b": 0.2, "c": None, "d": 0.9}, "b", [0.6, 0.8])
    row = row_of(compare(runs), "lora")
    assert row.configuration == "b" and row.seeds == (0, 1) and row.cells["boolq"].values == (0.6, 0.8)
    assert row.candidates == 4 and row.choice == "lowest validation loss" and row.settings == {"r": "b"}
    assert row.validation_loss == 5.0, "of the trials that are compared"
    found = row.searched
    assert (found.trained, found.stopped, found.failed, found.best) == (3, 1, 0, 0.2)
    assert found.losses == (0.2, 0.3, 0.9) and found.hours == pytest.approx(4 * 2 * 900 / 3600)


def test_after_an_extension_the_new_choice_stands_and_not_what_scored_better() -> None:
    runs = searched("lora", {"a": 0.3, "b": 0.2}, "b", [0.9])
    runs += searched("lora", {"c": 0.1}, "c", [0.5])
    assert row_of(compare(runs), "lora").cells["boolq"].values == (0.5,)
    # Where the new choice has no final trial (it failed), the best of those that have one stands.
    assert row_of(compare(runs[:-1]), "lora").cells["boolq"].values == (0.9,)


def test_trials_from_before_a_change_of_the_suite_are_left_out() -> None:
    old = [trial("lora", "old", 0, 0.1, {"boolq": 0.9}, context="x")]
    new = [trial("lora", "new", 0, 0.2, {"boolq": 0.6}, context="y")]
    comparison = compare(old + new)
    assert row_of(comparison, "lora").configuration == "new"
    assert comparison.left_out == ("lora-old-seed0 (made before the suite was changed)",)
    assert row_of(compare(old + new, context="x"), "lora").configuration == "old"


def test_a_search_alone_cannot_be_compared() -> None:
    runs = searched("lora", {"a": 0.3}, "a", [])
    with pytest.raises(UserError, match="no finished trial with scores to compare: 1 of the search"):
        compare(runs)


def test_the_report_shows_both_stages() -> None:
    from beamplatform.report.sheets import sheets

    runs = searched("lora", {"a": 0.3, "b": 0.2, "c": None}, "b", [0.6])
    comparison = compare([*runs, trial("dora", "x", 0, 1.0, {"boolq": 0.5}, role="final")])
    (sheet,) = [sheet for sheet in sheets(comparison) if sheet.title.startswith("Search")]
    assert [entry.text for entry in sheet.rows[0]] == ["LoRA", "2", "1", "0", "0.2000", "0.2500", "1.5"]
    assert [entry.text for entry in sheet.rows[1]] == ["DoRA"] + ["-"] * 6


def test_a_lone_method_is_shown_and_said_to_be_alone() -> None:
    from beamplatform.report.sheets import remarks

    lora, dora = trial("lora", "x", 0, 1.0, {"boolq": 0.5}), trial("dora", "x", 0, 1.0, {"boolq": 0.5})
    assert "only LoRA has finished trials: nothing to compare it with" in remarks(compare([lora]))
    assert not any("only" in text for text in remarks(compare([lora, dora], methods=["lora"])))
