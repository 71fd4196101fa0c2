"""A trial's code version changes with what the code does, and with nothing else."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import grimp
import pytest

from beamplatform.config.code_version import PARTS, code_version, sources, version_of
from beamplatform.config.normal_form import statements

BEFORE = """
import math
from typing import Any

from beamplatform.models.loading import load_base


def scaled(x: Any, factor: float = 2.0) -> Any:
    values = [math.sqrt(one) for one in x]
    try:
        return factor * sum(values)
    except ValueError as error:
        raise UserError(f"{x}: must be positive") from error


class Options:
    rank: int = Field(8, description="rank of the adapter")
    alpha: int = _option(16, help="of the adapter")


def runs() -> None:
    count = 0

    def again() -> int:
        nonlocal count
        count += 1
        return count

    again()
"""

SAME = {
    "a comment": ("    values =", "    # why\n    values ="),
    "a docstring": ("    values =", '    """The sum of the roots, scaled."""\n    values ='),
    "a docstring of an attribute": ("class Options:", 'class Options:\n    """Of a method."""\n'),
    "an annotation": ("x: Any, factor: float", "x: list[float], factor: int"),
    "an import for annotations": ("import math", "import math\nfrom collections.abc import Sequence"),
    "a block for type checkers": ("import math", "import math\nif TYPE_CHECKING:\n    import torch"),
    "where a name of our own is imported from": ("beamplatform.models.loading", "beamplatform.anywhere"),
    "a local variable": ("values", "roots"),
    "the variable of a comprehension": ("math.sqrt(one) for one", "math.sqrt(y) for y"),
    "the name of an error": ("error", "caught"),
    "the text of an error": ("must be positive", "has a root only where it is positive"),
    "the description of an option": ("rank of the adapter", "how many ranks an adapter has"),
    "a variable of two functions": ("count", "number"),
    "a function within a function": ("again", "once_more"),
    "the help of an option": ('help="of the adapter"', 'help="how many"'),
    "layout": ("factor * sum(values)", "(\n            factor\n            * sum(values)\n        )"),
    "what a module exports": ("import math", '__all__ = ["scaled"]\nimport math'),
}
OTHER = {
    "a default": ("float = 2.0", "float = 2.5"),
    "a default of an option": ("Field(8", "Field(16"),
    "a type of a number": ("float = 2.0", "float = 2"),
    "an operation": ("factor * sum", "factor + sum"),
    "another function": ("math.sqrt", "math.exp"),
    "another library": ("import math", "import cmath as math"),
    "another variable": ("sum(values)", "sum(x)"),
    "a parameter, which callers name": ("factor", "scale"),
    "a name that others import": ("def scaled", "def rooted"),
    "a kind of error that is caught": ("except ValueError", "except TypeError"),
    "a step left out": ("    again()\n", ""),
    "an argument of that name elsewhere": ("sum(values)", "sum(values, help=1)"),
    "a field": ("rank: int", "size: int"),
}


@pytest.mark.parametrize("change", SAME)
def test_words_and_layout_change_nothing(change: str) -> None:
    old, new = SAME[change]
    assert old in BEFORE and statements(BEFORE.replace(old, new)) == statements(BEFORE)


@pytest.mark.parametrize("change", OTHER)
def test_what_the_code_does_changes_it(change: str) -> None:
    old, new = OTHER[change]
    assert old in BEFORE and statements(BEFORE.replace(old, new)) != statements(BEFORE)


def test_two_local_variables_are_not_exchanged() -> None:
    text = "def f(x):\n    a = x\n    b = x + 1\n    return a - b"
    assert statements(text) == statements(text.replace("a", "c"))
    assert statements(text) != statements(text.replace("a - b", "b - a"))


def test_a_moved_file_or_function_changes_nothing() -> None:
    texts = [file.read_bytes() for part in PARTS for file in sources(part)]
    assert version_of(texts) == version_of(texts[::-1]) == code_version()
    first, second = BEFORE.split("class Options:")
    assert version_of([BEFORE.encode()]) == version_of([("class Options:" + second).encode(), first.encode()])


class _Other(ast.NodeTransformer):
    """Changes the first number that decides something."""

    def __init__(self) -> None:
        self.done = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        returns, node.returns = node.returns, None
        self.generic_visit(node)
        node.returns = returns
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.value = node.value and self.visit(node.value)
        return node

    def visit_Raise(self, node: ast.Raise) -> Any:
        return node

    def visit_arg(self, node: ast.arg) -> Any:
        return node

    def visit_Constant(self, node: ast.Constant) -> Any:
        if self.done or isinstance(node.value, str) or node.value is None:
            return node
        self.done = True
        return ast.Constant("another value")


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_constant_in_a_file_of_each_part_changes_it(part: str) -> None:
    changed = 0
    for file in sources(part):
        tree, other = ast.parse(file.read_text()), _Other()
        assert statements(ast.unparse(tree)) == statements(file.read_text()), "comments and layout of a real file"
        text = ast.unparse(other.visit(tree))
        if other.done:
            changed += 1
            assert statements(text) != statements(file.read_text()), file
    assert changed


@pytest.mark.parametrize("part", ["beamplatform.nowhere", "beamplatform.sweep.nowhere", "no_such_package"])
def test_a_part_that_is_not_there_is_an_error(part: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^{part}: this part of the code, which decides results, is not"):
        list(sources(part))


DECIDES_NOTHING = {
    "beamplatform.errors", "beamplatform.metrics",  # names
    "beamplatform.io.disk_cache", "beamplatform.io.storage",  # where things lie
    "beamplatform.models.check", "beamplatform.models.weight_files",  # they refuse
    "beamplatform.models.shapes",  # for estimates
    # What they read is in the trial.
    "beamplatform.config.base",
    "beamplatform.config.sections", "beamplatform.config.space", "beamplatform.config.suite", "beamplatform.validation",
    "beamplatform.config.yaml_source",
}  # fmt: skip


def test_no_module_that_trains_or_scores_is_left_out() -> None:
    """Whatever a training worker or the evaluator imports, at once or later, is in a part or decides nothing."""
    graph = grimp.build_graph("beamplatform", exclude_type_checking_imports=True)
    starts = {"beamplatform.training.worker", "beamplatform.evaluation.evaluator"}
    reached = starts.union(*(graph.find_upstream_modules(start) for start in starts))
    left_out = {one for one in reached if not any(f"{one}.".startswith(f"{part}.") for part in PARTS)}
    assert left_out == DECIDES_NOTHING


def test_a_task_of_the_users_own_counts(tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text("LIMIT = 5  # tokens\n")
    first = code_version(["boolq", str(task)])
    task.write_text('"""A task."""\nLIMIT = 5\n')
    assert code_version([str(task)]) == first != code_version()
    task.write_text("LIMIT = 6\n")
    assert code_version([str(task)]) != first
    task.write_text("LIMIT = \n")
    assert code_version([str(task)]) not in (first, code_version())
