"""A filter for bubblewrap that denies system calls which take memory outside the sandbox's limits.

Files made by memfd_create and memfd_secret and segments made by shmget lie in the host's memory, outside the sandbox's
tmpfs and its limit on address space. The filter answers these calls with EPERM, and also every call of another
architecture.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_DENIED = {
    # machine: audit architecture; memfd_create, memfd_secret, shmget (linux/audit.h, unistd.h)
    "x86_64": (0xC000003E, (319, 447, 29)),
    "aarch64": (0xC00000B7, (279, 447, 194)),
}
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001
_X32 = 0x40000000
"""The bit that marks an x32 call on x86_64; such a call does the same as the call without this bit."""


def program() -> bytes | None:
    """The filter as classic BPF, 8 bytes per instruction; None if this machine's call numbers are not listed here."""
    entry = _DENIED.get(platform.machine())
    if entry is None:
        return None
    architecture, denied = entry
    checks = [(_EQUAL, architecture, False), (_AT_LEAST, _X32, True), *((_EQUAL, number, True) for number in denied)]
    lines: list[tuple[int, int, int, int]] = []
    for index, (operation, value, denies) in enumerate(checks):
        # After the first check comes the instruction that loads the call's number.
        remaining = len(checks) - index - 1 + (1 if index == 0 else 0)
        to_deny = remaining + 1  # skips the remaining checks and the return that allows the call
        lines.append((operation, to_deny, 0, value) if denies else (operation, 0, to_deny, value))
        if index == 0:
            lines.append((_LOAD, 0, 0, 0))
    lines = [(_LOAD, 0, 0, 4), *lines, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


@contextmanager
def opened() -> Iterator[tuple[int, ...]]:
    """Yield the descriptor from which bubblewrap reads the filter; an empty tuple if there is no filter."""
    content = program()
    if content is None:
        yield ()
        return
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        yield (reading,)
    finally:
        os.close(reading)
