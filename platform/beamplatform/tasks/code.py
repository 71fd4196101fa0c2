"""HumanEval (Chen et al. 2021, arXiv 2107.03374) and MBPP (Austin et al. 2021, arXiv 2108.07732), run in a sandbox.

A program is correct when its tests pass (`beamplatform.sandbox`). The questions of both benchmarks are asked as
instructions; the papers' own prompts are for models that were not trained to follow instructions.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import textwrap
from collections.abc import Callable, Collection, Mapping
from typing import Any

from beamplatform.errors import UserError
from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record, json_type, text_field
from beamplatform.tasks.task import Option, Task

MBPP_TEST = range(11, 511)
"""The ids of MBPP's test split; all splits are in one file."""

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_PYTHON = re.compile(r"(?:\{?\.?(?:i?python|py)[\d.]*\}?(?:[:,].*)?)?", re.IGNORECASE)
"""Matches what follows the opening fence of a block of Python: nothing, or a text such as python3, {.python} or
python:a.py."""
_ENDS = re.compile(r"""^if __name__ == ["']__main__["']:|^# Example usage|^assert\b""", re.MULTILINE)
_CODE = re.compile(r"^[ \t]*[^\s#]", re.MULTILINE)
"""Matches the beginning of a line that is neither blank nor a comment."""


def extract_program(completion: str, names: Collection[str] = ()) -> str | None:
    """Return the program in a completion, or None if there is none.

    If the completion has fenced blocks of Python, the program is the first block that defines one of `names`, or else
    the first block. Without such a block it is the whole completion. Code at the end of the program that only
    demonstrates its use is left out.
    """
    text = completion.replace("\r\n", "\n")
    # A completion that is itself Python may contain fences, in a docstring.
    blocks = [text] if _parses(text) else _blocks(text) or [text]
    program = next((block for block in blocks if _defines(block, names)), blocks[0])
    for end in _ENDS.finditer(program):
        if _CODE.search(program, 0, end.start()):
            program = program[: end.start()]
            break
    return program if _CODE.search(program) else None


def program_for(completion: str, record: Record) -> str | None:
    """Return the program as `extract_program` does, with the names that the record's tests use."""
    return extract_program(completion, json.loads(record.answer)["names"])


def _blocks(text: str) -> list[str]:
    """Return the fenced blocks that may be Python, and Python before a closing fence that has no opening fence."""
    blocks: list[str] = []
    fences = list(_FENCE.finditer(text))
    opening: re.Match[str] | None = None
    for fence in fences:
        if opening is None:
            before = text[: fence.start()]
            if not blocks and not fence[3] and len(fences) % 2 and _CODE.search(before) and _parses(before):
                blocks.append(before)
            else:
                opening = fence
        elif fence[2].startswith(opening[2]) and not fence[3]:
            blocks += _python(text, opening, fence.start())
            opening = None
    if opening is not None:  # the completion was cut off
        blocks += _python(text, opening, len(text))
    return blocks


def _python(text: str, opening: re.Match[str], end: int) -> list[str]:
    """Return a list of the fenced block, without the indentation of the fence; empty for another language."""
    if not _PYTHON.fullmatch(opening[3]):
        return []
    lines = text[opening.end() + 1 : end].split("\n")
    return ["\n".join(line.removeprefix(opening[1]) for line in lines)]


def _defines(program: str, names: Collection[str]) -> bool:
    defined = re.findall(r"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+(\w+)", program, re.MULTILINE)
    return not set(defined).isdisjoint(names)


def _parses(program: str) -> bool:
    """Whether the text is Python, or the indented body of a function."""
    try:
        ast.parse(textwrap.dedent(program))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def parse_humaneval(row: Mapping[str, Any], where: str) -> Record:
    """Return the record of a row {"prompt", "canonical_solution", "test", "entry_point"}."""
    prompt, test, name = (text_field(row, field, where) for field in ("prompt", "test", "entry_point"))
    if not name.isidentifier():
        raise UserError(f"{where}: entry_point must be the name of a function, found {name!r}")
    tests = {"setup": prompt, "test": f"{test}\ncheck({name})\n", "names": [name]}
    return Record(prompt, text_field(row, "canonical_solution", where), json.dumps(tests))


def parse_mbpp(row: Mapping[str, Any], where: str) -> Record | None:
    """Return the record of a row {"task_id", "text", "code", "test_list", "test_setup_code"}.

    Returns None for a row that is not in the test split.
    """
    number, tests = row.get("task_id"), row.get("test_list")
    if not isinstance(number, int) or not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise UserError(f"{where}: needs an integer task_id and a list of texts test_list")
    if number not in MBPP_TEST:
        return None
    if not any(test.strip() for test in tests):
        raise UserError(f"{where}: test_list is empty, so that every program would be right")
    setup = row.get("test_setup_code")
    if setup is not None and not isinstance(setup, str):
        raise UserError(f"{where}: test_setup_code must be a string, found {json_type(setup)}")
    tests_text = "\n".join(tests)
    instruction = f"{text_field(row, 'text', where)} Your code should satisfy these tests:\n{tests_text}"
    code = text_field(row, "code", where)
    answer = {"setup": setup or "", "test": tests_text, "names": _defined(code)}
    return Record(instruction, code, json.dumps(answer))


def _defined(code: str) -> list[str]:
    """Return the names of a program's functions and classes, which may be names of built-ins, as MBPP's `sum`."""
    return [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def humaneval_prompt(record: Record) -> str:
    return alpaca_prompt(f"Complete this Python function.\n{record.instruction}")


def mbpp_prompt(record: Record) -> str:
    return alpaca_prompt(record.instruction)


def completes_prompt(program: str, record: Record, *, sandboxed: bool = True) -> bool:
    """Whether the prompt followed by the program passes the tests.

    The program may continue the prompt's function, or write it anew.
    """
    return passes(f"{record.instruction}{program}", record, sandboxed=sandboxed)


def passes(program: str, record: Record, *, sandboxed: bool = True) -> bool:
    """Whether the program passes the record's tests.

    Program and tests run in the sandbox, unless the user accepts to run them without it.

    Raises:
        UserError: no sandbox can be created on this machine.
    """
    from beamplatform.sandbox import check_program

    tests = json.loads(record.answer)
    verdict = check_program(program, tests["test"], setup=tests["setup"], names=tests["names"], sandboxed=sandboxed)
    return verdict.passed


def sandbox() -> None:
    """Raise UserError if no sandbox can be created on this machine."""
    from beamplatform.sandbox import find_bubblewrap

    find_bubblewrap()


def _unsafe(correct: Callable[..., bool]) -> dict[str, Option]:
    """Return the option behind --i-accept-unsafe-execution, which runs programs without a sandbox."""
    changes = {"requires": lambda: None, "correct": functools.partial(correct, sandboxed=False)}
    return {"unsafe": Option("its programs ran without a sandbox", changes)}


HUMANEVAL = Task(
    name="humaneval",
    prompt=humaneval_prompt,
    max_new_tokens=1024,
    extract=extract_program,
    extract_for=program_for,
    correct=completes_prompt,
    requires=sandbox,
    files="HumanEval.jsonl.gz",
    parse=parse_humaneval,
    options=_unsafe(completes_prompt),
)
MBPP = Task(
    name="mbpp",
    prompt=mbpp_prompt,
    max_new_tokens=1024,
    extract=extract_program,
    extract_for=program_for,
    correct=passes,
    requires=sandbox,
    files="mbpp.jsonl",
    parse=parse_mbpp,
    options=_unsafe(passes),
)
