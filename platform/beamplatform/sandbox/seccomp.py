"""A filter of system calls for bubblewrap: those that take memory which no limit of the sandbox counts.

Files made by memfd_create and memfd_secret and segments of shmget lie in the host's memory, outside the sandbox's tmpfs
and its limit on address space. The filter answers these calls with EPERM, and calls of another architecture as well.
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
"""On x86_64 the x32 calls have this bit and are the same calls."""


def program() -> bytes | None:
    """The filter as classic BPF, 8 bytes an instruction; None for a machine whose call numbers are not known here."""
    known = _DENIED.get(platform.machine())
    if known is None:
        return None
    architecture, denied = known
    checks = [(_EQUAL, architecture, False), (_AT_LEAST, _X32, True), *((_EQUAL, number, True) for number in denied)]
    lines: list[tuple[int, int, int, int]] = []
    for place, (operation, value, denies) in enumerate(checks):
        left = (
            len(checks) - place - 1 + (1 if place == 0 else 0)
        )  # the load of the call's number stands after the first
        to_deny = left + 1  # over the other checks and the return that allows
        lines.append((operation, to_deny, 0, value) if denies else (operation, 0, to_deny, value))
        if place == 0:
            lines.append((_LOAD, 0, 0, 0))
    lines = [(_LOAD, 0, 0, 4), *lines, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


@contextmanager
def opened() -> Iterator[tuple[int, ...]]:
    """The descriptor from which bubblewrap reads the filter; none where there is no filter."""
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
