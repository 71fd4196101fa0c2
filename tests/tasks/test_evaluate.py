"""Several models at once, answers kept by what they are made of, and what happens when something stops."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beamplatform.errors import UserError
from beamplatform.evaluation.answer_store import StoredAnswers
from beamplatform.evaluation.evaluate import Event, Settings, evaluate_all
from beamplatform.evaluation.scores import Evaluation
from beamplatform.inference import Export, Generation, Request
from beamplatform.inference.applied_check import ExportError
from beamplatform.tasks import get_task
from beamplatform.tasks.record import Record

TASKS = [get_task("boolq"), get_task("gsm8k")]
RECORDS = {
    "boolq": [Record(f"is {n} even?", "", "false" if n % 2 else "true") for n in range(6)],
    "gsm8k": [Record(f"what is {n} + 1?", "", str(n + 1)) for n in range(4)],
}
QUESTIONS = 10
ONE, TWO = Export("adapter", "one"), Export("adapter", "two")


class Scripted:
    """An engine whose answers depend on prompt, model and seed; it can stop, and refuse a model."""

    version = "scripted 1"

    def __init__(self, *, stop_after: int | None = None, refused: Export | None = None) -> None:
        self.asked: list[tuple[str, Export | None]] = []
        self.stop_after = stop_after
        self.refused = refused

    def generate(self, requests: Sequence[Request], generation: Generation) -> Iterator[tuple[int, list[str]]]:
        for index in reversed(range(len(requests))):
            request = requests[index]
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            if request.export is not None and request.export == self.refused:
                raise ExportError(request.export, "refused")
            self.asked.append((request.prompt, request.export))
            length = len(request.prompt) + len(request.export.path if request.export else "")
            said = "true" if (length + generation.seed) % 3 else "false"
            yield index, [f"{said} The answer is: {length % 5 + sample}" for sample in range(generation.samples)]

    def close(self) -> None: ...


def run(engine: Scripted, exports: Sequence[Export | None], store: str | None, **settings: Any) -> dict[int, Any]:
    def answers(export: Export | None, generation: Generation) -> StoredAnswers:
        return StoredAnswers(store, {"export": export.path if export else None, "generation": repr(generation)})

    outcomes: dict[int, Any] = {}
    answered = dict.fromkeys(range(len(exports)), 0)
    for event in evaluate_all(engine, exports, TASKS, RECORDS, settings=Settings(**settings), answers=answers):
        assert isinstance(event, Event) and event.answered >= answered[event.index]
        answered[event.index] = event.answered
        if event.outcome is not None:
            assert event.index not in outcomes
            outcomes[event.index] = event.outcome
    return outcomes


def test_every_model_gets_its_own_answers() -> None:
    together = run(Scripted(), [None, ONE, TWO], None)
    for index, export in enumerate([None, ONE, TWO]):
        assert together[index] == run(Scripted(), [export], None)[0]
        assert [len(together[index].predictions[task.name]) for task in TASKS] == [6, 4]
    assert together[0] != together[1]


def test_what_was_asked_before_is_not_asked_again(tmp_path: Path) -> None:
    first, again, other, seed = Scripted(), Scripted(), Scripted(), Scripted()
    found = run(first, [None, ONE], str(tmp_path))
    assert len(first.asked) == 2 * QUESTIONS
    assert run(again, [None, ONE], str(tmp_path)) == found and again.asked == []
    assert run(other, [ONE, TWO], str(tmp_path))[0] == found[1]
    assert {export for _, export in other.asked} == {TWO}
    run(seed, [None], str(tmp_path), seed=1)
    assert len(seed.asked) == QUESTIONS


@pytest.mark.parametrize("stop", [1, 5, 9, 13, 19])
def test_an_interrupted_evaluation_goes_on_at_the_next_question(tmp_path: Path, stop: int) -> None:
    whole = run(Scripted(), [None, ONE], None)
    stopped, resumed = Scripted(stop_after=stop), Scripted()
    with pytest.raises(KeyboardInterrupt):
        run(stopped, [None, ONE], str(tmp_path))
    assert run(resumed, [None, ONE], str(tmp_path)) == whole
    assert len(stopped.asked) == stop
    assert len(resumed.asked) == 2 * QUESTIONS - stop
    assert not {*stopped.asked} & {*resumed.asked}


def test_a_file_cut_anywhere_loses_its_last_line_only(tmp_path: Path) -> None:
    whole = run(Scripted(), [None], str(tmp_path))
    (file,) = (path for path in tmp_path.glob("*/*.jsonl") if len(path.read_text().splitlines()) == 6)
    content = file.read_bytes()
    last = len(content.splitlines()[-1]) + 1
    for cut in range(1, last + 1):
        for part in tmp_path.glob("*/*.jsonl"):
            if part.parent == file.parent:
                part.unlink()
        file.write_bytes(content[:-cut])
        engine = Scripted()
        assert run(engine, [None], str(tmp_path)) == whole
        assert len(engine.asked) == (0 if cut == 1 else 1)


def test_a_store_may_be_a_uri() -> None:
    store = "memory://answers-of-test"
    found = run(Scripted(), [None, ONE], store)
    again = Scripted()
    assert run(again, [None, ONE], store) == found and again.asked == []


def test_about_json_says_what_the_answers_are_made_of(tmp_path: Path) -> None:
    run(Scripted(), [ONE], str(tmp_path))
    abouts = [json.loads(path.read_text()) for path in tmp_path.glob("*/about.json")]
    assert len(abouts) == 2 and {about["export"] for about in abouts} == {"one"}


def test_a_model_that_cannot_be_asked_does_not_stop_the_others(tmp_path: Path) -> None:
    found = run(Scripted(refused=ONE), [ONE, None, TWO], str(tmp_path))
    assert str(found[0]) == "refused" and isinstance(found[0], UserError)
    alone = run(Scripted(), [None, TWO], None)
    assert [found[1], found[2]] == [alone[0], alone[1]]


def test_samples_are_judged_one_by_one() -> None:
    found = run(Scripted(), [None], None, samples=3, temperature=1.0)[0]
    assert isinstance(found, Evaluation)
    assert [p.sample for p in found.predictions["gsm8k"]] == [0, 1, 2] * 4
    assert found.questions("gsm8k") == 4
    right = [[p.correct for p in found.predictions["gsm8k"][n : n + 3]] for n in range(0, 12, 3)]
    assert found.scores["gsm8k"] == pytest.approx(sum(map(sum, right)) / 12)
    assert found.pass_at("gsm8k", 3) == pytest.approx(sum(map(any, right)) / 4)
    assert 0 < found.scores["gsm8k"] < found.pass_at("gsm8k", 3)


def test_the_same_model_twice_is_refused() -> None:
    with pytest.raises(UserError, match="must differ"):
        run(Scripted(), [ONE, ONE], None)


def test_answers_that_cannot_be_judged_are_wrong_and_told() -> None:
    def fails_on_odd(extracted: str, record: Record) -> bool:
        if int(record.instruction.split()[1]) % 2:
            raise ZeroDivisionError("odd")
        return True

    task = replace(TASKS[0], correct=fails_on_odd)
    (found,) = (
        event.outcome
        for event in evaluate_all(Scripted(), [None], [task], {"boolq": RECORDS["boolq"]})
        if event.outcome
    )
    assert isinstance(found, Evaluation)
    assert [p.correct for p in found.predictions["boolq"]] == [True, False] * 3
    assert found.notes["boolq"].startswith("3 answers counted as wrong because judging them failed, first with Zero")


@pytest.mark.parametrize(
    ("extract", "told"),
    [(lambda _: exit(0), "first with SystemExit"), (lambda _: 5, "first with TypeError: extract() must return a text")],
)
def test_an_extraction_that_fails_does_not_end_the_evaluation(extract, told: str) -> None:
    task = replace(TASKS[0], extract=extract)
    events = list(evaluate_all(Scripted(), [None], [task], {"boolq": RECORDS["boolq"]}))
    found = events[-1].outcome
    assert isinstance(found, Evaluation) and found.scores["boolq"] == 0 and told in found.notes["boolq"]
