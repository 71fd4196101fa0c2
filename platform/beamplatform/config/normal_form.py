"""Reduces a Python source file to what it does, so that changes of wording and layout do not count."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from itertools import chain

_OWN = ("beamlora", "beamplatform")
_IGNORED = {"annotation", "returns", "type_comment", "type_ignores", "type_params", "ctx", "kind"}
"""Fields of the syntax tree that have no effect on what a program computes."""
_OPTIONS, _DESCRIPTIONS = {"Field", "_option"}, {"description", "help", "source"}
"""Functions that declare an option, and their arguments that only describe it to a reader."""


def statements(source: str) -> set[str]:
    """Return the top-level statements of a module, each in its normal form.

    The normal form leaves out comments, docstrings, annotations, imports that only annotations need, texts of errors,
    descriptions of options, and `__all__`. For a name imported from this project it leaves out the module. Variables
    within functions are numbered. So the normal form of a definition stays the same when the definition moves to
    another file, when its documentation changes, and when a local variable gets another name.

    Raises:
        SyntaxError: the text is not Python.
    """
    body, form = ast.parse(source).body, _NormalForm()
    imports = [statement for statement in body if isinstance(statement, ast.Import | ast.ImportFrom)]
    others = [statement for statement in body if statement not in imports]
    texts = set(chain.from_iterable(form.of_statement(statement) for statement in others))
    for statement in imports:
        statement.names = [
            alias for alias in statement.names if (alias.asname or alias.name).partition(".")[0] in form.used
        ]
        texts.update(form.of_statement(statement))
    return texts


class _NormalForm:
    """Writes a syntax tree as text.

    Empty fields are left out, which Python's own `ast.dump` does only since Python 3.13.
    """

    def __init__(self) -> None:
        self._scopes: list[dict[str, str]] = []
        self._in_error = False
        self.used: set[str] = set()
        """Names that are read by something other than an annotation."""

    def of_statement(self, node: ast.AST) -> Iterator[str]:
        """Yield a statement's text: nothing if it has no effect, and for an import one text for each name."""
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imported(node)
        elif not _is_without_effect(node):
            yield self._of(node)

    def _of(self, value: object) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(chain.from_iterable(self._in_list(element) for element in value)) + "]"
        if not isinstance(value, ast.AST):
            return repr(value)
        if isinstance(value, ast.Raise) and not self._in_error:
            self._in_error = True
            try:
                return self._of(value)
            finally:
                self._in_error = False
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in _OPTIONS:
            value.keywords = [keyword for keyword in value.keywords if keyword.arg not in _DESCRIPTIONS]
        if self._in_error and (isinstance(value, ast.JoinedStr) or _is_text(value)):
            return "text"
        if isinstance(value, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            self._scopes.append(_names_of(value, len(self._scopes)))
            try:
                return self._of_fields(value, name=False)
            finally:
                self._scopes.pop()
        return self._of_fields(value)

    def _in_list(self, value: object) -> Iterator[str]:
        if isinstance(value, ast.AST):
            yield from self.of_statement(value)
        else:
            yield self._of(value)

    def _of_fields(self, node: ast.AST, *, name: bool = True) -> str:
        fields = []
        for field, value in ast.iter_fields(node):
            if field in _IGNORED or value is None or value == []:
                continue
            if isinstance(value, str) and _binds(node, field):
                self.used.add(value)
                # The name of a function is a variable of the scope around the function.
                fields.append(f"{field}={self._name(value, self._scopes if name else self._scopes[:-1])}")
            else:
                fields.append(f"{field}={self._of(value)}")
        return f"{type(node).__name__}({', '.join(fields)})"

    @staticmethod
    def _name(name: str, scopes: Sequence[dict[str, str]]) -> str:
        return next((scope[name] for scope in reversed(scopes) if name in scope), name)


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    is_ours = isinstance(node, ast.ImportFrom) and (node.level > 0 or module.partition(".")[0] in _OWN)
    if module == "__future__":
        return
    for alias in node.names:
        if isinstance(node, ast.Import) and alias.name.partition(".")[0] in _OWN:
            continue
        name = alias.name if is_ours else f"{module}.{alias.name}"
        if not is_ours or alias.asname not in (None, alias.name):
            yield f"import {name.removeprefix('.')} as {alias.asname or alias.name}"


def _is_without_effect(node: ast.AST) -> bool:
    """Whether a statement has no effect on what the code computes.

    Such are docstrings, `pass`, `__all__`, and blocks for type checkers. `global` and `nonlocal` do not count either,
    because the names of their variables in the normal form already show the scope.
    """
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.Pass | ast.Global | ast.Nonlocal) or (
        isinstance(node, ast.Expr) and _is_text(node.value)
    )


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _binds(node: ast.AST, field: str) -> bool:
    """Whether this text field of a node of the syntax tree holds the name of a variable."""
    return (
        (isinstance(node, ast.Name) and field == "id")
        or (field == "name" and not isinstance(node, ast.alias))
        or (isinstance(node, ast.MatchMapping) and field == "rest")
    )


def _names_of(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, depth: int) -> dict[str, str]:
    """Map a function's variables to their names in the normal form.

    Parameters keep their names, because callers may pass them by name.
    """
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters += [variadic for variadic in (arguments.vararg, arguments.kwarg) if variadic is not None]
    names = {parameter.arg: parameter.arg for parameter in parameters}
    elsewhere: set[str] = set()
    for node in _within(function):
        if isinstance(node, ast.Global | ast.Nonlocal):
            elsewhere |= set(node.names)
        for field, value in ast.iter_fields(node):
            bound = isinstance(value, str) and _binds(node, field)
            if bound and not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)):
                names.setdefault(value, f"variable {depth}.{len(names)}")
    return {name: form for name, form in names.items() if name not in elsewhere}


def _within(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes within a function, but not those within the functions and classes that it defines."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from _within(child)
