"""Ray's worker processes in tests, forked off a server that has imported torch, transformers and DeepSpeed already.

Of the minute that the smallest trial takes on two cores, most goes into the imports of its worker processes. `use`,
for as long as it lasts, has `ray.init` ask for workers that `forked_worker.py` starts (`py_executable` of Ray's runtime
environment, by Ray's own hook for it). Nothing else differs: Ray's own worker program runs in a process of its own,
with its environment, output and exit. What is read when a process starts is the server's, though: an allocator that is
preloaded is not there.

    python forked_workers.py SOCKET OWNER      the server: forks for whoever asks at SOCKET, until process OWNER is gone
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forked import become

HERE = Path(__file__).resolve().parent
FOLDER, OWNER = "BEAMLORA_TESTS_FORKED_WORKERS", "BEAMLORA_TESTS_OWNER"
"""Variables: where the server's socket is, and the process that it lives as long as; the same in a run of tests."""


def prepare() -> None:
    """To be called once in the process that starts all others of a run of tests."""
    if FOLDER not in os.environ:
        os.environ |= {FOLDER: tempfile.mkdtemp(prefix="forked-"), OWNER: str(os.getpid())}
        atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)


@contextlib.contextmanager
def use() -> Iterator[None]:
    """`ray.init`, in this process and in programs that it starts meanwhile, takes forked workers."""
    import pytest  # not in the drivers, which import this for `hook`

    paths = [str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_RUNTIME_ENV_HOOK", "forked_workers.hook")
        patch.setenv("PYTHONPATH", os.pathsep.join(dict.fromkeys(filter(None, paths))))
        yield


def hook(runtime_env: dict[str, Any] | None) -> dict[str, Any]:
    """What `ray.init` makes of its runtime environment; the server is started for the first one that asks."""
    _start_server()
    place = Path(os.environ[FOLDER]) / "socket"
    words = [sys.executable, "-S", str(HERE / "forked_worker.py"), str(place)]
    return {**(runtime_env or {}), "py_executable": shlex.join(words)}


def _start_server() -> None:
    """Unless it runs already, for whichever process of this run of tests came first."""
    folder = Path(os.environ[FOLDER])
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "started").exists():
            return
        (folder / "started").touch()
        with (folder / "log").open("w") as log:
            line = [sys.executable, __file__, str(folder / "socket"), os.environ[OWNER]]
            subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def serve(place: str, owner: int) -> None:
    import preloaded  # noqa: F401

    assert "ray" not in sys.modules, "Ray reads its worker's environment while it is imported"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what was forked is not waited for here
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place + ".new")
        listening.listen(64)
        os.rename(place + ".new", place)
        while Path(f"/proc/{owner}").exists():
            if not select.select([listening], [], [], 2.0)[0]:
                continue
            asking, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                try:
                    _serve_one(asking)
                except BaseException:
                    traceback.print_exc()
                os._exit(1)
            asking.close()


def _serve_one(asking: socket.socket) -> None:
    """Fork once more: this process waits for the worker, and for whoever asked, and tells each of the other's end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, descriptors, *_ = socket.recv_fds(asking, 8, 3)
    message = b""
    while len(message) < int(length):
        message += asking.recv(int(length) - len(message))
    worker = os.fork()
    if worker == 0:
        asking.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        # A session of its own: the raylet ends a worker with its process group.
        become(**json.loads(message), session=True)
    for descriptor in descriptors:
        os.close(descriptor)
    ended = os.pidfd_open(worker)
    ready, _, _ = select.select([ended, asking], [], [])
    if ended not in ready:
        os.kill(worker, signal.SIGKILL)  # whoever asked was killed
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    with contextlib.suppress(OSError):
        asking.sendall(str(code).encode())
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
