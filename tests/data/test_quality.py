"""What is counted over a sweep's records, and what of it is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import beamplatform.data.quality as module
from beamplatform.config.sections import DataSection, Tolerances
from beamplatform.data.quality import Quality, check_answers, quality
from beamplatform.data.splits import count_unscorable, training_records
from beamplatform.data.splits import test_records as load_tests
from beamplatform.errors import UserError
from beamplatform.models.loading import load_tokenizer
from beamplatform.tasks.record import Record

TASK = "boolq"


def record(number: int, **changes: str) -> dict[str, str]:
    usual = {"instruction": f"Is {number} a number?", "output": "the correct answer is true", "answer": "true"}
    return usual | changes


@pytest.fixture
def count(tmp_path: Path) -> Callable[..., tuple[Quality, DataSection]]:
    """Write a task's records and count over them."""

    def make(train: list[dict[str, str]], test: list[dict[str, str]] | None = None, **options: Any) -> Any:
        folder = tmp_path / TASK
        folder.mkdir(exist_ok=True)
        (folder / "train.json").write_text(json.dumps(train))
        (folder / "test.json").write_text(json.dumps(test or [record(-1)]))
        data = DataSection(source=str(tmp_path), **{"validation_records": 2} | options)
        found = quality(
            [TASK], training_records(data, [TASK]), load_tests(data, [TASK], None), load_tokenizer("tiny"), data
        )
        return found, data

    return make


def test_records_that_are_well_are_told_nothing_of(count: Callable[..., Any]) -> None:
    found, data = count([record(number) for number in range(20)])
    found.check(data)
    assert list(found.lines(data)) == [] and (found.records, found.validation) == (20, 2)
    assert found.targets > 0 and found.validation_targets > 0 and found.enough <= found.longest


def test_prompts_that_fill_every_example_are_refused(count: Callable[..., Any]) -> None:
    found, data = count(
        [record(number) for number in range(20)], max_length=8, tolerated={"without_targets": 1, "cut": 1}
    )
    assert found.targets == 0 and found.without_targets == found.cut == 20
    with pytest.raises(UserError, match=rf"no training record has a token.*--set data\.max_length={found.enough}$"):
        found.check(data)
    better = data.model_copy(update={"max_length": found.enough})
    assert count([record(number) for number in range(20)], max_length=better.max_length)[0].targets > 0


@pytest.mark.parametrize(
    ("kind", "counted", "of", "records", "says"),
    [
        ("cut", 3, 20, [record(n, input="x y " * (200 if n < 3 else 0)) for n in range(20)], "3 of 20 .* are cut at"),
        ("cut", 2, 20, [record(n, output="true " * (400 if n < 2 else 1)) for n in range(20)], "lose their end"),
        ("without_targets", 3, 20, [record(n, input="x y " * (200 * (n < 3))) for n in range(20)], "have no token"),
        ("duplicates", 6, 20, [record(n % 14) for n in range(20)], "6 of 20 .* repeat an earlier one"),
        ("test_questions", 5, 20, [record(n) for n in range(20)], "5 of 20 .* ask a question of the test sets"),
        ("unknown_answers", 4, 20, [record(n, answer="maybe" if n < 4 else "true") for n in range(20)],
         "4 of 20 gold answers of boolq, training cannot be scored by the task"),
    ],
)  # fmt: skip
def test_what_is_unfit_is_counted_told_and_above_a_share_refused(
    count: Callable[..., Any], kind: str, counted: int, of: int, records: list[dict[str, str]], says: str
) -> None:
    tests = [record(number) for number in range(5)] if kind == "test_questions" else None
    others = {other: 1 for other in DataSection().tolerated.model_dump() if other != kind}
    found, data = count(records, tests, tolerated=others | {kind: counted / of})
    found.check(data)
    assert any(re.search(says, line) for line in found.lines(data)), list(found.lines(data))
    strict = data.model_copy(update={"tolerated": data.tolerated.model_copy(update={kind: counted / of - 0.01})})
    with pytest.raises(
        UserError, match=rf"{says}.*, more than data\.tolerated\.{kind} \(0\.\d+ of them\) allows"
    ) as caught:
        found.check(strict)
    remedy = float(str(caught.value).rpartition("=")[2])
    found.check(data.model_copy(update={"tolerated": data.tolerated.model_copy(update={kind: remedy})}))


def test_a_validation_question_that_is_trained_on_is_counted(count: Callable[..., Any]) -> None:
    records = [record(0, output=f"the correct answer is {'true' * (n + 1)}") for n in range(20)]
    found, data = count(records)
    assert (found.validation_trained, found.validation, found.duplicates) == (2, 2, 0)
    with pytest.raises(UserError, match="2 of 2 validation records have a question that is also trained on"):
        found.check(data)


def test_blank_outputs_of_a_mixture_are_counted(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}.", "output": "" if n < 4 else "yes"} for n in range(20)]
    (tmp_path / "mixture.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataSection(train_source=str(tmp_path / "mixture.jsonl"), validation_records=2)
    found = quality([], training_records(data, []), {}, load_tokenizer("tiny"), data)
    assert found.empty == 4
    with pytest.raises(UserError, match=r"4 of 20 .* blank .* allows; leave the blank records out.*empty=0\.2$"):
        found.check(data)


def test_of_many_records_a_sample_is_turned_into_tokens(
    count: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENISED", 10)
    found, data = count(
        [record(n, input="x y " * (200 * (n % 2))) for n in range(40)], tolerated={"without_targets": 1}
    )
    assert (found.records, found.tokenised, found.validation) == (40, 10, 2) and 0 < found.cut < 10
    assert found.cut == found.without_targets and found.targets > 0 and found.validation_targets > 0
    with pytest.raises(UserError, match=rf"^{found.cut} of 10 records, drawn from 40, are cut at data.max_length"):
        found.check(data)


def test_gold_answers_that_no_model_can_be_right_with_are_told_where_models_are_scored(tmp_path: Path) -> None:
    tests = {
        "boolq": [Record("q", "o", "true")] * 3 + [Record("q", "o", "True")],
        "gsm8k": [Record("q", "o", "12 or so")],
    }
    data = DataSection(tolerated=Tolerances(unknown_answers=0.25))
    told = ["1 of 4 gold answers of boolq, test cannot be scored by the task."]
    assert check_answers(["gsm8k", "boolq"], tests, data) == told
    with pytest.raises(UserError, match=r"1 of 4 .* allows; correct the data, or .*unknown_answers=0.25$"):
        check_answers(["gsm8k", "boolq"], tests, DataSection())


def test_gold_answers_of_the_published_tests_can_be_scored(shared_data: Path) -> None:
    for folder, names in (
        ("commonsense", ["boolq", "piqa", "social_i_qa", "winogrande", "ARC-Easy"]),
        ("math", ["gsm8k", "MATH"]),
    ):
        data = DataSection(source=str(shared_data / folder))
        counts = count_unscorable(names, load_tests(data, names, None))
        assert [counted for counted, of in counts.values() if of] == [0] * len(names)
