"""Encodes the values that the judge and a program exchange: plain data, or references to other objects.

This file also runs inside the sandbox, without the rest of the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO, Any

LONGEST = 8 * 2**20
"""The largest number of bytes in one message."""
STARTED = {"started": True}
"""The first message from a program's sandbox."""
READY = "READY"
"""The line that a judge writes after it has received `STARTED`."""
_DEEPEST = 100
_COLLECTIONS = (list, tuple, set, frozenset)


class Reference:
    """An object, class or function of the program that has no plain form."""

    def __init__(self, number: int) -> None:
        self.number = number


def encode(value: Any, refer: Callable[[Any], int], depth: int = 0) -> Any:
    """Encode a value as JSON data; `refer(value)` returns a number for a value without a plain form.

    An instance of a subclass (Counter, namedtuple, IntEnum) is encoded as its plain content, by which it also compares.

    Raises:
        ValueError: the value is nested too deeply.
    """
    if depth > _DEEPEST:
        raise ValueError("too deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Reference):
        return {"ref": value.number}
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, str):
        return {"str": value.encode("utf-8", "surrogatepass").hex()}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    for kind in _COLLECTIONS:
        if isinstance(value, kind):
            return {kind.__name__: [encode(item, refer, depth + 1) for item in value]}
    if isinstance(value, dict):
        pairs = [[encode(k, refer, depth + 1), encode(v, refer, depth + 1)] for k, v in value.items()]
        return {"dict": pairs}
    return {"ref": refer(value)}


def decode(data: Any, resolve: Callable[[int], Any]) -> Any:
    """Decode what `encode` returned; `resolve(number)` returns the value that a reference stands for.

    Any other data raises an error.
    """
    if data is None or isinstance(data, bool):
        return data
    ((kind, content),) = data.items()
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float.fromhex(content)
    if kind == "complex":
        return complex(float.fromhex(content[0]), float.fromhex(content[1]))
    if kind == "str":
        return bytes.fromhex(content).decode("utf-8", "surrogatepass")
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "range":
        return range(*content)
    for collection in _COLLECTIONS:
        if kind == collection.__name__:
            return collection([decode(item, resolve) for item in content])
    if kind == "dict":
        return {decode(k, resolve): decode(v, resolve) for k, v in content}
    if kind == "ref":
        return resolve(int(content))
    raise ValueError(f"unknown kind {kind!r}")


def limit_processes(number: int) -> None:
    """From now on, limit this user's processes and threads in this sandbox to `number`; 0 means no limit."""
    import resource

    if number:
        resource.setrlimit(resource.RLIMIT_NPROC, (number, number))


def send(stream: IO[bytes], message: Any) -> None:
    """Write one message.

    Raises:
        ValueError: the message is too long.
    """
    line = json.dumps(message).encode() + b"\n"
    if len(line) > LONGEST:
        raise ValueError("message too long")
    stream.write(line)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read the next message; returns None at the end of the stream.

    Raises:
        ValueError: the message is too long or not JSON.
    """
    line = stream.readline(LONGEST + 1)
    if not line:
        return None
    if not line.endswith(b"\n"):
        raise ValueError("message too long or cut off")
    return json.loads(line)
