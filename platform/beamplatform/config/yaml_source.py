"""Reads YAML: accepts numbers as people write them, and finds the line of a key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from beamplatform.errors import first_line


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with three differences.

    It reads ``1e-4`` as a number, as in YAML 1.2. PyYAML follows YAML 1.1, where only ``1.0e-4`` is a number. It
    refuses a mapping that has a key twice; PyYAML would silently keep the last. A value that looks like a date or a
    number but is none, such as ``2024-02-31``, raises `yaml.YAMLError`, as all other errors do.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a mapping that has a key twice.

        `construct_mapping` would be too late: it also sees the keys that `<<` merges, and these may be replaced.
        """
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = (key.tag, key.value)
            if name in lines:
                problem = f"the key {key.value!r} stands twice, first on line {lines[name]}; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError) as error:
            problem = f"{str(node.value)[:40]!r} cannot be read ({error}); put it in quotes if it is a text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Return the document as plain Python values.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain values only
    except RecursionError:
        raise yaml.YAMLError("brackets or indentation are nested too deeply") from None


def yaml_fault(error: yaml.YAMLError) -> tuple[int | None, str]:
    """Return the line of an error in a YAML text (None if PyYAML does not know it), and what is wrong in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return (mark.line + 1 if mark else None), problem or first_line(error)


def line_of(text: str, location: Sequence[str]) -> int | None:
    """Return the line (from 1) of the deepest key of `location` that the YAML `text` has; None if it has none."""
    node = yaml.compose(text, Loader=_Loader)
    line = None
    for key in location:
        if isinstance(node, yaml.MappingNode):
            pairs = {str(k.value): (k, v) for k, v in node.value}
            if key not in pairs:
                break
            line, node = pairs[key][0].start_mark.line + 1, pairs[key][1]
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
        else:
            break
    return line
