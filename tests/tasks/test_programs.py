"""The program in a completion, however the model sets it off."""

from __future__ import annotations

import ast
import json

import pytest

from beamplatform.tasks import get_task
from beamplatform.tasks.code import extract_program
from beamplatform.tasks.record import Record

F = "def f(x):\n    return x + 1\n"
BODY = "    return x + 1\n"
RECORD = Record("def f(x):\n", "", json.dumps({"setup": "", "test": "", "names": ["f"]}))


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        (F, F),
        (BODY, BODY),
        (f"```python\n{F}```", F),
        (f"```py\n{F}```\nThat is it.", F),
        (f"```python3\n{F}```", F),
        (f"```Python\n{F}```", F),
        (f"```\n{F}```", F),
        (f"``` python\n{F}```", F),
        (f"~~~python\n{F}~~~", F),
        (f"````python\n{F}````", F),
        (f"Sure:\n\n```python title=\"f.py\"\n{F}```", F),
        (f"Here it is:\n```python\n{F}", F),
        (f"```python\n{BODY}```", BODY),
        (f"{F}```\nThis adds one.", F),
        (f"{BODY}```\nThis adds one.", BODY),
        ("1. So:\n   ```python\n   def f(x):\n       return x + 1\n   ```\n", F),
        (f"```python\n{F}```".replace("\n", "\r\n"), F),
        (F.replace("\n", "\r\n"), F),
        (f"```bash\npip install it\n```\nthen\n```python\n{F}```", F),
        (f"```\nprint(f(1))\n```\nwith\n```python\n{F}```", F),
        (f"```python\nimport math\n```\nand\n```py\n{F}```\nand\n```python\nprint(f(2))\n```", F),
        (f"```python\ndef ff(x): ...\n```\n```\n{F}```", F),
        (f"# Example usage\n{F}", f"# Example usage\n{F}"),
        (f"# Example usage\n{F}# Example usage\nf(2)\n", f"# Example usage\n{F}"),
        (f"\n# Example usage:\n\n```python\n# Example usage\n{F}assert f(1) == 2\n```", f"# Example usage\n{F}"),
        (f"{F}\nassert f(1) == 2\n", f"{F}\n"),
        (f'{F}\nif __name__ == "__main__":\n    f(1)\n', f"{F}\n"),
        ('def f(x):\n    """As in:\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n',) * 2,
        ("```json\n{}\n```", "```json\n{}\n```"),
        ("", None),
        ("```python\n```", None),
        ("# Example usage\n", None),
    ],
)  # fmt: skip
def test_the_program_in_a_completion(completion: str, program: str | None) -> None:
    for task in ("humaneval", "mbpp"):
        assert get_task(task).answer_in(completion, RECORD) == program


def test_without_a_record_the_first_block_is_the_program() -> None:
    assert extract_program(f"```python\nimport math\n```\n```python\n{F}```") == "import math\n"


def test_what_is_found_runs() -> None:
    """A block in a list keeps the columns between its lines."""
    block = "- one\n\n    ```python\n    class C:\n        def f(self):\n            return 1\n    ```\n"
    program = get_task("mbpp").answer_in(block, Record("", "", json.dumps({"names": ["C"]})))
    assert program is not None
    (found,) = ast.parse(program).body
    assert isinstance(found, ast.ClassDef) and found.name == "C" and found.col_offset == 0


@pytest.mark.parametrize("words", ["{.python}", "{.python .numberLines}", "python:a.py", "python,ignore", "{python}"])
def test_fences_with_more_than_a_language(words: str) -> None:
    program = "def f(x):\n    return x\n"
    assert extract_program(f"Here it is:\n```{words}\n{program}```\n", ["f"]) == program
