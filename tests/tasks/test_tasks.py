"""Extraction, scoring and the evaluation loop."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
from asking import evaluate

from beamplatform.data.records import load_records
from beamplatform.errors import UserError
from beamplatform.evaluation.evaluate import Settings
from beamplatform.evaluation.scores import Evaluation
from beamplatform.inference import Generation, Request
from beamplatform.tasks import TASKS, Task, get_task
from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record

COMMONSENSE = [
    "boolq",
    "piqa",
    "social_i_qa",
    "hellaswag",
    "winogrande",
    "ARC-Easy",
    "ARC-Challenge",
    "openbookqa",
]


class Replay:
    """An engine that answers with completions written down before, in the order its prompts come up."""

    version = "replay 1"

    def __init__(self, completions: Mapping[str, Sequence[str]]) -> None:
        self.completions = {prompt: list(texts) for prompt, texts in completions.items()}
        self.calls: list[tuple[list[str], Generation]] = []

    def generate(self, requests: Sequence[Request], generation: Generation) -> Iterator[tuple[int, list[str]]]:
        self.calls.append(([request.prompt for request in requests], generation))
        for index, request in enumerate(requests):
            yield index, [self.completions[request.prompt].pop(0)]

    def close(self) -> None: ...


def replay(records: Sequence[Record], outputs: Sequence[str]) -> Replay:
    completions: dict[str, list[str]] = {}
    for record, output in zip(records, outputs, strict=True):
        completions.setdefault(alpaca_prompt(record.instruction), []).append(output)
    return Replay(completions)


def question(text: str, answer: str) -> Record:
    return Record(text, f"the correct answer is {answer}", answer)


@pytest.mark.parametrize(
    ("task", "completion", "expected"),
    [
        ("boolq", "the correct answer is true", "true"),
        ("boolq", "false, not true", "false"),
        ("boolq", "True", None),
        ("boolq", "untrue", "true"),
        ("boolq", "yes", None),
        ("piqa", "solution2 or solution1", "solution2"),
        ("piqa", "solution3", None),
        ("social_i_qa", "the correct answer is answer3", "answer3"),
        ("ARC-Easy", "answer10", "answer1"),
        ("ARC-Challenge", "Answer2 is answer5", "answer5"),
        ("openbookqa", "answer6", None),
        ("openbookqa", "answer 4", None),
        ("hellaswag", "\nending4", "ending4"),
        ("hellaswag", "ending5 ending2", "ending2"),
        ("winogrande", "option2", "option2"),
        ("winogrande", "", None),
    ],
)
def test_extraction_takes_the_first_label_as_published(task: str, completion: str, expected: str | None) -> None:
    assert get_task(task).extract(completion) == expected


def test_the_eight_tasks_are_asked_alike() -> None:
    assert list(TASKS)[:8] == COMMONSENSE
    for name in COMMONSENSE:
        task = get_task(name)
        assert (task.name, task.max_new_tokens, task.stop) == (name, 32, ())
        assert task.prompt(question("Why?", "x")) == alpaca_prompt("Why?")
        assert "### Input:\nA text" in task.prompt(Record("Why?", "x", "x", input="A text"))


def test_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown task 'boolQ': allowed are boolq, piqa, social_i_qa"):
        get_task("boolQ")


def test_evaluation_keeps_order_scores_and_predictions() -> None:
    boolq = [
        question("short?", "true"),
        question("a much longer question?", "false"),
        question("mid one?", "true"),
    ]
    piqa = [question("which is it?", "solution2")]
    said = ["it is true", "cannot say", "false"]
    engine = replay([*boolq, *piqa], [*said, "solution2"])
    found = evaluate(
        engine,
        None,
        [get_task("boolq"), get_task("piqa")],
        {"boolq": boolq, "piqa": piqa},
        settings=Settings(beams=4),
    )
    assert found.scores == {"boolq": pytest.approx(1 / 3), "piqa": 1.0}
    assert found.average == pytest.approx((1 / 3 + 1) / 2)
    assert [p.completion for p in found.predictions["boolq"]] == said
    assert [p.extracted for p in found.predictions["boolq"]] == ["true", None, "false"]
    assert [p.correct for p in found.predictions["boolq"]] == [True, False, False]
    assert [p.answer for p in found.predictions["boolq"]] == ["true", "false", "true"]
    assert found.predictions["boolq"][1].prompt == alpaca_prompt("a much longer question?")
    assert [(len(prompts), generation) for prompts, generation in engine.calls] == [(4, Generation(32, beams=4))]


def test_tasks_that_generate_differently_do_not_share_a_batch() -> None:
    """What a task of another kind, with its own length, stop texts and comparison, needs of the loop."""
    number = Task(
        name="number",
        prompt=lambda record: record.instruction,
        max_new_tokens=8,
        extract=str.strip,
        correct=lambda extracted, record: float(extracted) == float(record.answer),
        stop=("\n",),
    )
    engine = Replay({alpaca_prompt("wet?"): ["true"], "1+1": [" 2.0 "]})
    found = evaluate(
        engine,
        None,
        [get_task("boolq"), number],
        {"boolq": [question("wet?", "true")], "number": [question("1+1", "2")]},
    )
    assert found.scores == {"boolq": 1.0, "number": 1.0}
    assert [generation for _, generation in engine.calls] == [Generation(32), Generation(8, stop=("\n",))]


def test_evaluation_needs_tasks_and_records() -> None:
    boolq = get_task("boolq")
    with pytest.raises(UserError, match="one or more different tasks, got none"):
        evaluate(Replay({}), None, [], {})
    with pytest.raises(UserError, match="one or more different tasks, got boolq, boolq"):
        evaluate(Replay({}), None, [boolq, boolq], {"boolq": [question("a", "true")]})
    with pytest.raises(UserError, match="no records to evaluate task 'boolq' on"):
        evaluate(Replay({}), None, [boolq], {"boolq": []})


def score_real(shared_data: Path, name: str, shuffle: bool) -> tuple[list[Record], Evaluation]:
    records = load_records(name, "test", str(shared_data / "commonsense"))
    outputs = [record.output for record in records]
    if shuffle:
        random.Random(0).shuffle(outputs)
    return records, evaluate(replay(records, outputs), None, [get_task(name)], {name: records})


@pytest.mark.parametrize("name", COMMONSENSE)
def test_gold_outputs_of_the_published_test_sets_score_one(shared_data: Path, name: str) -> None:
    records, found = score_real(shared_data, name, shuffle=False)
    assert found.scores == {name: 1.0}
    assert [p.extracted for p in found.predictions[name]] == [r.answer for r in records]


CHANCE = {
    "boolq": 0.530,
    "piqa": 0.500,
    "social_i_qa": 0.333,
    "hellaswag": 0.250,
    "winogrande": 0.500,
    "ARC-Easy": 0.250,
    "ARC-Challenge": 0.251,
    "openbookqa": 0.253,
}
"""The chance that two records drawn from a test set have the same answer."""


@pytest.mark.parametrize("name", COMMONSENSE)
def test_shuffled_outputs_of_the_published_test_sets_score_at_chance(shared_data: Path, name: str) -> None:
    records, found = score_real(shared_data, name, shuffle=True)
    share = [count / len(records) for count in Counter(record.answer for record in records).values()]
    chance = sum(p * p for p in share)
    assert chance == pytest.approx(CHANCE[name], abs=6e-4)
    # Four standard errors of a score at chance: 0.0173 for hellaswag, 0.078 for openbookqa.
    assert found.scores[name] == pytest.approx(chance, abs=4 * sqrt(chance * (1 - chance) / len(records)))


def test_hellaswag_without_wikihows_markers_is_called_a_variant(shared_data: Path) -> None:
    task, records = get_task("hellaswag"), load_records("hellaswag", "test", str(shared_data / "commonsense"))
    assert task.notes(records).startswith("variant: ")
    assert task.notes(records[:3000]) == "", "the first ones are of another source, and as published"
    marked = [*records[:-1], replace(records[-1], instruction="[step] " + records[-1].instruction)]
    assert task.notes(marked) == "" and get_task("piqa").notes(records) == ""


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("gsm8k", {"question": "q", "answer": "2 and 3 are 5"}, "has no answer behind '#### '"),
        (
            "humaneval",
            {"prompt": "p", "test": "t", "entry_point": "f g", "canonical_solution": "s"},
            "entry_point must",
        ),
        ("mbpp", {"task_id": 11, "text": "t", "code": "x = 1", "test_list": []}, "test_list is empty"),
        (
            "mbpp",
            {"task_id": 11, "text": "t", "code": "x = 1", "test_list": ["t"], "test_setup_code": ["s"]},
            "test_setup_code must be a string, found a list",
        ),
    ],
)
def test_rows_that_no_answer_or_every_answer_would_be_right_for(
    task: str, row: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        get_task(task).parse(row, "here")


@pytest.mark.parametrize(
    ("answer", "good"), [("#### 3", True), ("#### 3.0", True), ("####1,234", True), ("#### 3.5", False)]
)
def test_gold_answers_of_gsm8k_are_integers(answer: str, good: bool) -> None:
    task = get_task("gsm8k")
    record = task.parse({"question": "q", "answer": answer}, "here")
    assert record is not None and task.scorable(record) is good
