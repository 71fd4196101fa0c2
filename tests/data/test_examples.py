"""Token sequences: what the loss counts, and how records are split."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from beamplatform.config.sections import DataSection
from beamplatform.data.examples import IGNORED, tokenise
from beamplatform.data.splits import training_records
from beamplatform.errors import UserError
from beamplatform.models.loading import load_tokenizer
from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record

RECORD = Record("Is the sky green?", "the correct answer is false", "false")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


def test_the_loss_counts_the_response_and_its_end_only(tokenizer) -> None:
    (example,) = tokenise([RECORD], tokenizer, max_length=128, loss_on="response")
    prompt = tokenizer(alpaca_prompt(RECORD.instruction))["input_ids"]
    assert example.ids[: len(prompt)] == prompt
    assert example.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert example.labels[len(prompt) :] == example.ids[len(prompt) :]
    assert tokenizer.decode(example.ids[len(prompt) : -1]) == RECORD.output
    assert example.ids[-1] == tokenizer.eos_token_id
    assert example.targets == len(example.ids) - len(prompt)


def test_the_loss_counts_everything_where_the_suite_says_so(tokenizer) -> None:
    (example,) = tokenise([RECORD], tokenizer, max_length=128, loss_on="all")
    assert example.labels == example.ids
    assert example.targets == len(example.ids) - 1, "nothing predicts the first token"


def test_long_examples_are_cut(tokenizer) -> None:
    (example,) = tokenise([RECORD], tokenizer, max_length=8, loss_on="response")
    assert len(example.ids) == len(example.labels) == 8
    assert example.targets == 0


def test_splits_are_disjoint_fixed_and_leave_out_nothing() -> None:
    data = DataSection(source="embedded", validation_records=50)
    tasks = ["boolq", "piqa"]
    found = training_records(data, tasks)
    assert len(found.validation) == 50
    assert found == training_records(data, tasks)
    assert not set(found.train) & set(found.validation)
    other = training_records(DataSection(source="embedded", validation_records=50, split_seed=1), tasks)
    assert set(other.train) | set(other.validation) == set(found.train) | set(found.validation)
    assert other.validation != found.validation


def test_a_mixture_from_a_file_with_its_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "mix.jsonl"
    path.write_text("".join(json.dumps({"query": f"q{i}", "response": f"a{i}"}) + "\n" for i in range(10)))
    data = DataSection(
        train_source=str(path), columns={"instruction": "query", "output": "response"}, validation_records=3
    )
    found = training_records(data, [])
    assert (len(found.train), len(found.validation)) == (7, 3)
    assert {r.output[1:] for r in found.train} == {r.instruction[1:] for r in found.train}
    with pytest.raises(
        UserError, match=r"record 1: needs the text fields 'instruction' and 'output'.*found query, response"
    ):
        training_records(DataSection(train_source=str(path), validation_records=3), [])


def test_the_published_training_splits(shared_data: Path) -> None:
    tasks = ["boolq", "ARC-Easy", "ARC-Challenge", "openbookqa", "piqa"]
    data = DataSection(source=str(shared_data / "commonsense"), validation_records=100)
    found = training_records(data, tasks)
    assert len(found.train) + 100 == 9427 + 2251 + 1119 + 4957, "piqa has no training split there and is left out"
    with pytest.raises(UserError, match=r"none of the suite's tasks has a training split there"):
        training_records(data, ["piqa"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataSection(validation_records=1), "data.source: missing"),
        (DataSection(source="embedded", validation_records=10**6), "leaves nothing to train on"),
        (DataSection(train_source="nowhere.json"), r"nowhere\.json does not exist; it must be a \.json or"),
    ],
)
def test_bad_sources(data: DataSection, message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_records(data, ["boolq"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "5", "expected a JSON list of records, found a number"),
        ("x.json", '{"instruction": "a", "output": "b"}', "expected a JSON list of records, found an object"),
        ("x.json", "null", "expected a JSON list of records, found null"),
        ("x.json", "[]", "holds no records"),
        ("x.jsonl", "\n\n", "holds no records"),
        ("x.json", "[5]", "record 1: needs the text fields 'instruction' and 'output' .* found a number"),
        (
            "x.json",
            '[{"instruction": "a", "output": "b", "input": 5}]',
            "record 1: field 'input' must be a string, found a",
        ),
        (
            "x.json",
            '[{"instruction": "a", "output": "b", "input": ["c"]}]',
            "field 'input' must be a string, found a list",
        ),
        (
            "x.json",
            '[{"instruction": "a", "output": "b", "input": 0}]',
            "field 'input' must be a string, found a number",
        ),
        ("x.json", '[{"instruction": "a", "output": null}]', "record 1: field 'output' must be a string, found null"),
        ("x.json", '[{"instruction": "\\ud800", "output": "b"}]', r"field 'instruction' holds '\\ud800', half of a"),
        ("x.json", "[" * 100_000, "nested too deep"),
        ("x.jsonl", '{"instruction": "a", "output": "b"}\n' + "[" * 100_000, r"nested too deep to be read \(line 2\)"),
        ("x.txt", "instruction,output", r"x\.txt must be a \.json or \.jsonl file, or \.gz of one$"),
        ("folder", None, "it is a folder, which data.source or --data-dir takes"),
        ("x.json", None, r"x\.json is a folder, which data.source or --data-dir takes; it must be a \.json"),
        ("x.json", '[{"instruction": "a", "output": "b", "output": "c"}]', "an object has the field 'output' twice"),
        ("x.jsonl", '{"output": "b"}\n{"a": {"b": 1, "b": 1}}', r"\(line 2\): an object has the field 'b' twice"),
    ],
)
def test_bad_mixtures_are_one_line(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        training_records(DataSection(train_source=str(path), validation_records=1), [])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_mixture_may_be_compressed_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    row = json.dumps({"instruction": "a", "output": ""}).encode()
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + row + b"\r\n" + row + b"\r\n"))
    found = training_records(DataSection(train_source=str(tmp_path / "x.jsonl.gz"), validation_records=1), [])
    assert found.train == found.validation == [Record("a", "", "")]
