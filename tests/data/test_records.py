"""Records from folders and from the hub, and the prompt made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from beamplatform.data.records import load_records, read_rows
from beamplatform.errors import UserError
from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record

GOOD = {"instruction": "Is water wet?", "input": "", "output": "the correct answer is true", "answer": "true"}

REAL_SIZES = {
    ("boolq", "test"): 3270,
    ("piqa", "test"): 1838,
    ("social_i_qa", "test"): 1954,
    ("winogrande", "test"): 1267,
    ("ARC-Easy", "test"): 2376,
    ("ARC-Challenge", "test"): 1172,
    ("openbookqa", "test"): 500,
    ("hellaswag", "test"): 10042,
    ("boolq", "train"): 9427,
    ("ARC-Easy", "train"): 2251,
    ("ARC-Challenge", "train"): 1119,
    ("openbookqa", "train"): 4957,
}


def write(folder: Path, content: Any, task: str = "boolq", split: str = "test") -> Path:
    path = folder / task / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_prompt_is_the_alpaca_template_without_stray_spaces() -> None:
    assert alpaca_prompt("Add {x} to it.\n\nAnswer format: a/b") == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd {x} to it.\n\nAnswer format: a/b\n\n### Response:\n"
    )


def test_prompt_shows_an_input_where_a_record_has_one() -> None:
    prompt = alpaca_prompt("Summarise.", "{A long text}")
    assert "### Instruction:\nSummarise.\n\n### Input:\n{A long text}\n\n### Response:\n" in prompt
    assert prompt.endswith("### Response:\n")


def test_folder_is_read_in_order(tmp_path: Path) -> None:
    second = {"instruction": "Ist Wasser naß?", "output": "no", "answer": "false", "input": "x", "id": 7}
    write(tmp_path, [GOOD, second])
    assert load_records("boolq", "test", str(tmp_path)) == [
        Record("Is water wet?", "the correct answer is true", "true"),
        Record("Ist Wasser naß?", "no", "false", "x"),
    ]


@pytest.mark.parametrize(("task", "split"), REAL_SIZES)
def test_published_files_parse(shared_data: Path, task: str, split: Any) -> None:
    records = load_records(task, split, str(shared_data / "commonsense"))
    assert len(records) == REAL_SIZES[task, split]
    assert all(record.output == f"the correct answer is {record.answer}" for record in records)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[{]", "not valid JSON (line 1"),
        (GOOD, "expected a JSON list of records, found an object"),
        ([], "holds no records"),
        ([GOOD, "text"], "record 2: expected an object, found a string"),
        ([GOOD, GOOD, {"instruction": "a", "output": "b"}], "record 3: no field 'answer'; needed are"),
        (
            [{**GOOD, "output": "  "}],
            "record 1: field 'output' must be a non-empty string, found an empty string",
        ),
        ([{**GOOD, "answer": True}], "record 1: field 'answer' must be a non-empty string, found a boolean"),
        ([{**GOOD, "output": "half \ud800 of one"}], "record 1: field 'output' holds '\\ud800', half of a surrogate"),
        ("[" * 100_000, "lists or objects are nested too deep to be read"),
        ('[{"a": ' + "9" * 5000 + "}]", "not readable as JSON: Exceeds the limit"),
        ('[{"output": "a", "output": "b"}]', "not readable as JSON: an object has the field 'output' twice"),
        ("5", "expected a JSON list of records, found a number"),
        ([{**GOOD, "input": 3}], "record 1: field 'input' must be a string, found a number"),
    ],
)
def test_malformed_file_is_named_with_record_and_field(tmp_path: Path, content: Any, expected: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load_records("boolq", "test", str(tmp_path))
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    write(tmp_path, [GOOD]).write_bytes(b'[{"instruction": "\xff"}]')
    with pytest.raises(UserError, match=r"boolq/test\.json: not UTF-8 text \(byte 18\)"):
        load_records("boolq", "test", str(tmp_path))


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, [GOOD])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_records("boolq", "test", str(tmp_path)) == [Record("Is water wet?", GOOD["output"], "true")]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.json: cannot be read \(Is a directory\)"):
        (tmp_path / "x.json").mkdir()
        read_rows(tmp_path / "x.json")


def test_missing_task_split_and_folder(tmp_path: Path) -> None:
    write(tmp_path, [GOOD])
    with pytest.raises(UserError, match=r"no task 'piqa' in .*: its folders are boolq"):
        load_records("piqa", "test", str(tmp_path))
    with pytest.raises(UserError, match=r"no train split of 'boolq': .*train\.json is missing, .* has test\.json"):
        load_records("boolq", "train", str(tmp_path))
    with pytest.raises(UserError, match=r"no data folder at .*/nowhere: give 'embedded', a folder"):
        load_records("boolq", "test", str(tmp_path / "nowhere"))
    unknown: Any = "dev"
    with pytest.raises(UserError, match="unknown split 'dev': allowed are train, test"):
        load_records("boolq", unknown, str(tmp_path))


def test_misspelt_folder_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "commonsense", [GOOD])
    assert len(load_records("boolq", "test", "data/commonsense")) == 1
    with pytest.raises(UserError, match="no data folder at data/commonsens:"):
        load_records("boolq", "test", "data/commonsens")


HUB = """
import sys
from beamplatform.data import records
from beamplatform.errors import UserError
for task in ("boolq", "piqa"):
    rows, where = records._from_hub(task, "test", sys.argv[1], f"{task}/test.json")
    print([(r.answer, r.input) for r in records._parse(rows, where, records.parse_record)])
for source in (sys.argv[1], "owner/name"):
    try:
        records._from_hub("winogrande", "test", source, "winogrande/test.json")
    except UserError as error:
        print(error)
"""


def test_hub_data_set_is_read_by_configuration_or_by_file(root: Path, tmp_path: Path) -> None:
    """`datasets` opens a local repository as it opens one of the hub; it fixes its cache folder at import."""
    repository = tmp_path / "repository"
    write(repository, [GOOD])
    write(repository, [{"instruction": "a", "output": "b", "answer": "solution1"}], task="piqa")
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: boolq\n  data_files:\n  - split: test\n    path: boolq/test.json\n---\n"
    )
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{root}:{root / 'platform'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", HUB, str(repository)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    boolq, piqa, missing, offline = done.stdout.splitlines()
    assert boolq == "[('true', '')]"
    assert piqa == "[('solution1', '')]"
    assert "reading winogrande/test of it from the Hugging Face hub failed (" in missing
    assert offline.startswith("no folder owner/name, and reading winogrande/test of it")
    assert offline.endswith("or give a folder that holds winogrande/test.json")


def test_json_lines_name_the_line_that_is_wrong(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "gsm8k" / "test.jsonl.gz"
    path.parent.mkdir()
    for content, message in (
        (gzip.compress(b'{"a": 1}\n\n{"a": \n'), r"test\.jsonl\.gz: not valid JSON \(line 3: "),
        (gzip.compress(b'{"a": 1}')[:-4], "not a whole gzip file"),
        (b"plain", "not a whole gzip file"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_records("gsm8k", "test", str(tmp_path), files="{name}/{split}.jsonl.gz")
