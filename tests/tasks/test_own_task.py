"""A task in a file of the user's own: the README's, and files that are none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import forked
import pytest

from beamplatform.config.sections import DataSection, EvaluationSection
from beamplatform.data.splits import test_records as records_of_tests
from beamplatform.errors import UserError
from beamplatform.tasks import get_task

RECORDS = "".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(5))


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """The file that the README shows, and its records in DIR."""
    (code,) = re.findall(r"^    # sums\.py\n((?:    .*\n|\n)+)", (root / "README.md").read_text(), re.MULTILINE)
    path = tmp_path / "sums.py"
    path.write_text("\n".join(line.removeprefix("    ") for line in code.split("\n")))
    (tmp_path / "DIR" / "sums").mkdir(parents=True)
    (tmp_path / "DIR" / "sums" / "test.jsonl").write_text(RECORDS)
    return path


def test_the_task_of_the_readme_is_scored(root: Path, own: Path) -> None:
    options = ["--suite", "commonsense", "--preset", "tiny", "--tasks", "sums.py", "--data-dir", "DIR"]
    done = forked.run(root / "pipelines" / "evaluate.py", *options, "--output", "scores", folder=own.parent)
    assert done.returncode == 0, done.stderr
    scores = json.loads((own.parent / "scores" / "scores.json").read_text())
    assert scores["tasks"]["sums"]["questions"] == 5
    task = get_task(str(own))
    (record, *_) = records_of_tests(DataSection(source=str(own.parent / "DIR")), [str(own)], None)["sums"]
    assert task.extract("it is 1, surely") == record.answer == "1"
    assert task.correct("1", record) and task.extract("no idea") is None


def test_its_records_may_lie_beside_it(own: Path) -> None:
    other = own.with_name("beside.py")
    place = 'str(Path(__file__).with_name("{split}.jsonl"))'
    other.write_text("from pathlib import Path\n" + own.read_text().replace('"sums/{split}.jsonl"', place))
    (own.parent / "test.jsonl").write_text(RECORDS)
    assert len(records_of_tests(DataSection(source="embedded"), [str(other)], 3)["sums"]) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no task file .*mine.py"),
        ("TASK = 3\n", "sets TASK to a beamplatform.tasks.Task, found int"),
        ("", "found NoneType"),
        ("import nothing_of_this_name\n", "cannot be run .*nothing_of_this_name"),
        ("TASK = (\n", "cannot be run .SyntaxError"),
    ],
)
def test_a_file_that_is_no_task_is_explained(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        get_task(str(path))
    with pytest.raises(ValueError, match=message):
        EvaluationSection(tasks=(str(path),))


def test_a_relative_path_is_made_absolute_for_workers(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    assert EvaluationSection(tasks=("sums.py", "boolq")).tasks == (str(own), "boolq")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            '{"question": "1 + 1?", "answer": 2}\n',
            r"test.jsonl, record 1: parse\(\) of its task must make output a string",
        ),
        ('{"answer": "2"}\n', "test.jsonl, record 1: its task cannot read it .KeyError: 'question'."),
    ],
)
def test_records_that_do_not_fit_are_named(own: Path, rows: str, message: str) -> None:
    (own.parent / "DIR" / "sums" / "test.jsonl").write_text(rows)
    with pytest.raises(UserError, match=message):
        records_of_tests(DataSection(source=str(own.parent / "DIR")), [str(own)], None)


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ("alpaca_prompt(record.instruction)", "record.nothing", r"task sums: its prompt\(\) fails \(AttributeError"),
        (
            "alpaca_prompt(record.instruction)",
            "exit(0)",
            r"task sums: its prompt\(\) fails \(SystemExit: 0\) .* '0 \+ 1\?'",
        ),
        ("alpaca_prompt(record.instruction)", "5", r"task sums: its prompt\(\) must return a text, found int"),
        ("return Record(", "exit(0)\n    return Record(", r"record 1: its task cannot read it \(SystemExit: 0\)"),
        ("return Record(", "return dict(", r"record 1: parse\(\) of its task must return a Record or None, found dict"),
    ],
)
def test_a_task_whose_functions_fail_is_one_line(own: Path, written: str, instead: str, message: str) -> None:
    own.write_text(own.read_text().replace(written, instead))
    with pytest.raises(UserError, match=message) as caught:
        for record in records_of_tests(DataSection(source=str(own.parent / "DIR")), [str(own)], None)["sums"]:
            get_task(str(own)).question(record)
    assert "\n" not in str(caught.value)


def test_a_sweep_is_planned_over_it(root: Path, own: Path) -> None:
    """Its records are counted under the name that the task gives itself."""
    rows = [json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(400)]
    (own.parent / "DIR" / "sums" / "train.jsonl").write_text("".join(rows[5:]))
    scored = own.read_text().replace(
        "    parse=parse,", "    parse=parse,\n    scorable=lambda record: record.answer != '3',"
    )
    own.write_text(scored)
    options = ["--suite", "commonsense", "--preset", "tiny", "--set", "evaluation.tasks=[sums.py]", "--data-dir", "DIR"]
    sweep = root / "pipelines" / "sweep.py"
    done = forked.run(sweep, *options, "--methods", "lora", "--dry-run", folder=own.parent)
    assert done.returncode == 2 and "1 of 5 gold answers of sums, test cannot be scored by" in done.stderr, done.stderr
    accepted = ["--set", "data.tolerated.unknown_answers=0.2"]
    done = forked.run(sweep, *options, *accepted, "--methods", "lora", "--dry-run", folder=own.parent)
    assert done.returncode == 0 and " training examples, 5 test questions" in done.stdout, done.stdout
    assert "1 of 5 gold answers of sums, test cannot be scored by the task." in done.stdout
