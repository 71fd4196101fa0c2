"""A Python source file reduced to what it does: the same for two texts of it that differ only in words and layout."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from itertools import chain

_OWN = ("beamlora", "beamplatform")
_IGNORED = {"annotation", "returns", "type_comment", "type_ignores", "type_params", "ctx", "kind"}
"""Fields of the syntax tree that change nothing about what a program computes."""


def statements(source: str) -> set[str]:
    """The statements at the top of a module, each in a normal form.

    Left out are comments, docstrings, annotations and imports for them, texts of errors, descriptions of options,
    `__all__`, and from which of this project's own modules a name is imported. Variables within functions are numbered.
    So a definition's normal form stays when the definition moves to another file, when its documentation changes, and
    when a local variable gets another name.

    Raises:
        SyntaxError: the text is not Python.
    """
    body, form = ast.parse(source).body, _NormalForm()
    imports = [one for one in body if isinstance(one, ast.Import | ast.ImportFrom)]
    others = [one for one in body if one not in imports]
    found = set(chain.from_iterable(form.of_statement(one) for one in others))
    for one in imports:
        one.names = [alias for alias in one.names if (alias.asname or alias.name).partition(".")[0] in form.used]
        found.update(form.of_statement(one))
    return found


class _NormalForm:
    """Writes a syntax tree as text. Empty fields are left out, which Python's own `ast.dump` does since 3.13 only."""

    def __init__(self) -> None:
        self._scopes: list[dict[str, str]] = []
        self._in_error = False
        self.used: set[str] = set()
        """Names that anything but an annotation reads."""

    def of_statement(self, node: ast.AST) -> Iterator[str]:
        """Nothing for a statement without effect; an import gives one text for each of its names."""
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imported(node)
        elif not _is_without_effect(node):
            yield self._of(node)

    def _of(self, value: object) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(chain.from_iterable(self._in_list(one) for one in value)) + "]"
        if not isinstance(value, ast.AST):
            return repr(value)
        if isinstance(value, ast.Raise) and not self._in_error:
            self._in_error = True
            try:
                return self._of(value)
            finally:
                self._in_error = False
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
        if isinstance(value, ast.keyword) and value.arg == "description":
            return
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
                # A function's own name is one of the scope around it.
                fields.append(f"{field}={self._name(value, self._scopes if name else self._scopes[:-1])}")
            else:
                fields.append(f"{field}={self._of(value)}")
        return f"{type(node).__name__}({', '.join(fields)})"

    @staticmethod
    def _name(name: str, scopes: Sequence[dict[str, str]]) -> str:
        return next((scope[name] for scope in reversed(scopes) if name in scope), name)


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    own = isinstance(node, ast.ImportFrom) and (node.level > 0 or module.partition(".")[0] in _OWN)
    if module == "__future__":
        return
    for alias in node.names:
        if isinstance(node, ast.Import) and alias.name.partition(".")[0] in _OWN:
            continue
        name = alias.name if own else f"{module}.{alias.name}"
        if not own or alias.asname not in (None, alias.name):
            yield f"import {name.removeprefix('.')} as {alias.asname or alias.name}"


def _is_without_effect(node: ast.AST) -> bool:
    """Docstrings, `pass`, what only a type checker reads, `__all__`, and `global`, which the variables' names tell."""
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
    """Whether a field of the tree that holds a text is the name of a variable."""
    return (
        (isinstance(node, ast.Name) and field == "id")
        or (field == "name" and not isinstance(node, ast.alias))
        or (isinstance(node, ast.MatchMapping) and field == "rest")
    )


def _names_of(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, depth: int) -> dict[str, str]:
    """What the normal form calls a function's variables. Parameters keep their names, by which callers give them."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
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
    """What a function holds, without what lies in functions and classes within it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from _within(child)
