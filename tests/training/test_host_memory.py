"""A worker on a CPU gives large blocks back to the system when it frees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from beamplatform.training.host_memory import allocator_of_workers

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


def test_workers_have_jemalloc_where_it_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    if not (Path(ray.__file__).parent / "core" / "libjemalloc.so").exists():
        pytest.skip("Ray's wheel brings no jemalloc for this machine")
    chosen = allocator_of_workers()
    look = "import ctypes; print(hasattr(ctypes.CDLL(None), 'mallctl'))"
    done = subprocess.run([sys.executable, "-c", look], env=chosen, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert run(True, **chosen)[0] == "False", "and glibc is left alone"

    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert allocator_of_workers() == {}, "a Ray that has none"
    monkeypatch.undo()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert allocator_of_workers() == {}, "somebody has chosen already"
