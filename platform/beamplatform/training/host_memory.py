"""How a worker on a CPU takes memory from the system, so that it does not grow past what it needs.

The activations of a micro-batch come from glibc's heap, where blocks that were freed are often not found again for the
next ones: lengths change with each batch, and the worker grows although the same bytes are in use. SmolLM2-135M's shape
(bfloat16, micro-batches of 16 x 256 tokens) took 7.1 GiB after 10 steps, where 5.2 GiB are in use. jemalloc finds such
blocks again and takes no more time; Ray's wheel brings it. It must be there when a process starts. Where it is not,
glibc is told to map each large block by itself. No number of a training depends on either.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

OWN_MAPPING = 2**20
"""Bytes from which on glibc maps a block by itself, and gives it back when it is freed."""

_M_MMAP_THRESHOLD = -3
"""The number of the option in glibc's malloc.h."""

_CHOSEN = frozenset({"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD"})
"""Variables with which whoever starts a program has chosen an allocator or its thresholds."""


def allocator_of_workers() -> dict[str, str]:
    """Environment variables with which a process of this machine has jemalloc; none where it has not got it."""
    spec = find_spec("ray")
    if spec is None or spec.origin is None or _CHOSEN & os.environ.keys():
        return {}
    chosen = {"LD_PRELOAD": str(Path(spec.origin).parent / "core" / "libjemalloc.so")}
    # A missing file is a complaint of each process; one built for another size of pages would end it at its start.
    tried = subprocess.run([sys.executable, "-S", "-c", ""], env=os.environ | chosen, capture_output=True)
    return {} if tried.returncode or tried.stderr else chosen


def give_back_freed_blocks() -> bool:
    """Have glibc map each large block by itself for the rest of this process.

    Returns:
        Whether this was done. It is not under another C library, nor where the environment sets glibc's thresholds or
        brings another allocator.
    """
    if _CHOSEN & os.environ.keys():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING))
