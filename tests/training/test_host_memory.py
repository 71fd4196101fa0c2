"""A worker on a CPU gives large blocks back to the system when it frees them."""

from __future__ import annotations

import subprocess
import sys

import pytest

GROWTH = """
import ctypes, os
from beamplatform.training.host_memory import OWN_MAPPING, give_back_freed_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
# As glibc raises its threshold: a block that was mapped is freed.
library.free(library.malloc(24 * 2**20))
done = give_back_freed_blocks() if {called} else None
size, count = OWN_MAPPING + 2**20, 20
blocks = [library.malloc(size) for _ in range(count)]
for block in blocks:
    ctypes.memset(block, 1, size)
keep = library.malloc(1000)  # above them in the heap, so that its end stays where it is
before = resident()
for block in blocks:
    library.free(block)
print(done, (before - resident()) // size)
"""


def run(called: bool, **environment: str) -> list[str]:
    code = GROWTH.replace("{called}", str(called))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_freed_blocks_go_back_to_the_system() -> None:
    done, given_back = run(True)
    if done == "False":
        pytest.skip("the C library is not glibc")
    assert int(given_back) >= 19
    assert int(run(False)[1]) < 5, "without it glibc keeps them, which is why it is called"


def test_what_the_environment_says_counts() -> None:
    assert run(True, MALLOC_MMAP_THRESHOLD_="1073741824")[0] == "False"
