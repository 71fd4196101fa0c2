"""The generated world: the same bytes everywhere, disjoint splits, records in the published shape."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from beamplatform.errors import UserError
from beamplatform.world import SPLITS, TASKS, records
from beamplatform.world.facts import RELATIONS, RULES, world
from beamplatform.world.prng import Prng
from beamplatform.world.questions import ask, queries

# Change this only when the world is meant to change; the shipped model must then be pretrained again.
WORLD_SHA256 = "2d4a0d257fbf4ed2f2fcb9f5f271f29fe824ee7109513824273d63c8f86a00a6"

# The published harness' patterns: the first match in the response is the prediction.
PATTERNS = {
    "boolq": r"true|false",
    "piqa": r"solution1|solution2",
    "social_i_qa": r"answer1|answer2|answer3|answer4|answer5",
    "hellaswag": r"ending1|ending2|ending3|ending4",
    "winogrande": r"option1|option2",
    "ARC-Easy": r"answer1|answer2|answer3|answer4|answer5",
    "ARC-Challenge": r"answer1|answer2|answer3|answer4|answer5",
    "openbookqa": r"answer1|answer2|answer3|answer4|answer5",
}
CASES = [(task, split) for task in TASKS for split in SPLITS]


def digest() -> str:
    everything = {f"{task}/{split}": records(task, split) for task, split in CASES}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def test_prng_is_splitmix64() -> None:
    # The first outputs for seed 1234567 in the published test vector of SplitMix64.
    prng = Prng(1234567)
    assert [prng.bits() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_bytes_are_pinned() -> None:
    assert digest() == WORLD_SHA256


def test_bytes_do_not_depend_on_hash_order(root: Path) -> None:
    code = (
        "import hashlib, json; from beamplatform.world import *; "
        "e = {f'{t}/{s}': records(t, s) for t in TASKS for s in SPLITS}; "
        "print(hashlib.sha256(json.dumps(e, sort_keys=True).encode()).hexdigest())"
    )
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root / "platform")}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == WORLD_SHA256


def test_import_is_light(root: Path) -> None:
    code = "import sys, beamplatform.world as w; w.records('boolq', 'test'); "
    code += "print('torch' in sys.modules, 'transformers' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(root / "platform")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(("task", "split"), CASES)
def test_records_have_the_published_shape(task: str, split: str) -> None:
    items = records(task, split)
    assert len(items) == {"train": 300, "test": 100}[split]
    assert len({item["instruction"] for item in items}) == len(items)
    for item in items:
        assert list(item) == ["instruction", "input", "output", "answer"]
        assert item["input"] == ""
        assert item["output"] == f"the correct answer is {item['answer']}"
        found = re.search(PATTERNS[task], item["output"])
        assert found is not None and found.group() == item["answer"]
        allowed = item["instruction"].rsplit("Answer format: ", 1)[1].split("/")
        assert item["answer"] in allowed
        options = re.findall(
            r"(?:Answer|Solution|Ending|Option)\d: (.+?)(?= *\n| (?:Answer|Ending|Option)\d:| Answer format)",
            item["instruction"],
        )
        assert len(set(options)) == len(options) == (0 if task == "boolq" else len(allowed))


@pytest.mark.parametrize("task", TASKS)
def test_framing_equals_the_real_records(task: str, shared_data: Path) -> None:
    real = json.loads((shared_data / "commonsense" / task / "test.json").read_text())

    def skeleton(instruction: str) -> str:
        """The instruction without its stem and option texts; label runs keep their separators."""
        text = re.sub(
            r"(question:|sentence:) .*?(?=\n\n(?:Answer|Solution1|Ending1|Option1))", r"\1", instruction, flags=re.S
        )
        ends = r"(?= ?\n\n(?:Solution\d|Answer format)| (?:Answer|Ending|Option)\d:| Answer format)"
        return re.sub(r" (?=\n)", "", re.sub(r"(\d:) .*?" + ends, r"\1", text, flags=re.S))

    shapes = {skeleton(item["instruction"]) for item in real}
    assert {skeleton(item["instruction"]) for item in records(task, "test")} <= shapes


@pytest.mark.parametrize(("task", "split"), CASES)
def test_answers_are_balanced(task: str, split: str) -> None:
    counts = Counter(item["answer"] for item in records(task, split))
    total = sum(counts.values())
    slack = 0.08 if task == "boolq" else 0.02
    assert all(abs(count / total - 1 / len(counts)) <= slack for count in counts.values())


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_question_and_no_fact(task: str) -> None:
    train, test = records(task, "train"), records(task, "test")
    assert not {item["instruction"] for item in train} & {item["instruction"] for item in test}
    # The same again below the wording: which (subject, relation) pairs can be behind each split's questions.
    held_out = world().held_out
    keys = {query.key for query in queries(world())}
    assert held_out < keys and 0.2 < len(held_out) / len(keys) < 0.3
    prng = Prng(3)
    stems = {True: set(), False: set()}
    for query in queries(world()):
        question = ask(task, query, world(), prng)
        if question is not None and task not in ("boolq", "winogrande", "openbookqa"):
            stems[query.key in held_out].add(question.stem)
    if task not in ("social_i_qa", "hellaswag", "piqa"):
        for item in test:
            assert not any(stem + "\n" in item["instruction"] for stem in stems[False] - stems[True])


def test_right_answers_are_true_in_the_world() -> None:
    """Read ARC-Easy, ARC-Challenge and openbookqa records back against the facts, without the code that wrote them."""
    things = {thing.name: thing for thing in world().things}

    def parts(item: dict[str, str]) -> tuple[str, dict[str, str]]:
        stem = re.search(r"question: (.*?)\n\n", item["instruction"])
        options = dict(re.findall(r"(Answer\d): (.+?)(?= Answer\d:|\n\n)", item["instruction"]))
        assert stem is not None
        return stem.group(1), {label.lower(): text for label, text in options.items()}

    for item in records("ARC-Easy", "test") + records("ARC-Easy", "train"):
        stem, options = parts(item)
        [thing] = [things[word.strip("?")] for word in stem.split() if word.strip("?") in things]
        assert [label for label, text in options.items() if text in thing.values.values()] == [item["answer"]]
    for item in records("ARC-Challenge", "test") + records("ARC-Challenge", "train"):
        stem, options = parts(item)
        [thing] = [things[word.strip("?")] for word in stem.split() if word.strip("?") in things]
        true = {RULES[relation].get(value) for relation, value in thing.values.items() if relation in RULES}
        assert [label for label, text in options.items() if text in true] == [item["answer"]]
    every_value = {value for relations in RELATIONS.values() for values in relations.values() for value in values}
    for item in records("openbookqa", "test") + records("openbookqa", "train"):
        stem, options = parts(item)
        [value] = [value for value in every_value if re.search(rf"\b{value}\b", stem)] or [""]
        fitting = [label for label, name in options.items() if value in things[name].values.values()]
        assert fitting == [item["answer"]]


@pytest.mark.parametrize(("task", "split", "part"), [("quiz", "test", "quiz"), ("boolq", "dev", "dev")])
def test_unknown_task_or_split_is_a_user_error(task: str, split: str, part: str) -> None:
    with pytest.raises(UserError, match=rf"{part}.*allowed: "):
        records(task, split)
