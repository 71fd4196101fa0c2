"""The sandbox's command line: bubblewrap around one Python script, which sees only the host's interpreter.

The sandbox has its own user, process, network, IPC, UTS and mount namespaces, and cannot make more of them. It inherits
no environment variables. It can write to a small tmpfs; everything else is read-only. Before Python starts, prlimit
limits CPU time, memory, open files and their size. A filter (`seccomp`) denies system calls that take memory outside
these limits.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beamplatform.errors import UserError
from beamplatform.sandbox.seccomp import opened

HERE = Path(__file__).parent
INSTALL = (
    "install it with: apt-get install bubblewrap (Debian, Ubuntu), or dnf install bubblewrap (Fedora); only where a "
    "model's programs can do no harm (a machine of their own), --i-accept-unsafe-execution runs them without"
)
_USER, _USERS = 60_000, 5_000
"""The first user id of sandboxes, and the number of their ids, where the evaluation runs as root.

Limits do not bind root. Each sandbox has a user id of its own, because processes are counted by user.
"""


@dataclass(frozen=True)
class Limits:
    """The resources that one program may use.

    Attributes:
        seconds: wall time, from the moment when both sandboxes run to the verdict. It is far more than the CPU time, so
            that a program that computes has the same verdict on a busy machine; this limit ends programs that wait.
        cpu_seconds: CPU time of each process.
        memory: bytes of address space of each process.
        processes: processes and threads at a time, including the interpreter. The script sets this limit inside the
            sandbox, where a kernel from 5.14 on counts only that sandbox's processes.
        files: open files of each process.
        disk: bytes of all files together, and of each file.
    """

    seconds: float = 40.0
    cpu_seconds: int = 8
    memory: int = 1024 * 2**20
    processes: int = 8
    files: int = 64
    disk: int = 16 * 2**20


def find_bubblewrap() -> str:
    """The path of bubblewrap's program.

    Raises:
        UserError: bubblewrap is not installed, or cannot make a sandbox here; the message says what to do.
    """
    bubblewrap_path = shutil.which("bwrap")
    if bubblewrap_path is None:
        raise UserError(f"generated programs run in a sandbox made by bubblewrap, which is not here: {INSTALL}")
    why = "" if bubblewrap_path in _works else _cannot(bubblewrap_path)
    if why:
        raise UserError(
            f"bubblewrap cannot make a sandbox on this machine: {why}; in a container it needs the right to make "
            "namespaces (docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
            "--security-opt systempaths=unconfined)"
        )
    return bubblewrap_path


_works: set[str] = set()
"""Paths of bubblewrap that have made a sandbox in this process; a failure is not kept, since it may be temporary."""


def _cannot(bubblewrap: str) -> str:
    """Why bubblewrap cannot make a sandbox here; "" if it can."""
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "nothing.py"
        script.write_text("")
        script.parent.chmod(0o755)  # bubblewrap may run as another user
        with opened() as seccomp:
            command = sandbox_command(
                bubblewrap, "nothing.py", {"nothing.py": script}, Limits(), number=os.getpid(), seccomp=seccomp
            )
            completed = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, pass_fds=seccomp
            )
    if completed.returncode:
        return completed.stderr.strip()[-300:] or f"it ended with {completed.returncode}"
    _works.add(bubblewrap)
    return ""


def sandbox_command(
    bubblewrap: str,
    script: str,
    files: Mapping[str, Path],
    limits: Limits,
    *,
    number: int,
    seccomp: tuple[int, ...],
    arguments: Sequence[str] = (),
) -> list[str]:
    """The command that runs `script` in a sandbox.

    Args:
        script: one of `files`.
        files: the files that are readable in the sandbox's folder /job: name in that folder -> path on this machine.
        number: a number that no other sandbox has while this one runs.
        seccomp: the descriptor from which the filter of system calls is read (`seccomp.opened`).
        arguments: the script's arguments.
    """
    prefix, executable, libraries = _interpreter()
    stage = _stage() if os.geteuid() == 0 else None
    standard = os.path.realpath(sysconfig.get_path("stdlib"))
    readable: list[str] = []
    for path in (*libraries, executable, standard):
        source = path.replace(prefix, str(stage), 1) if stage and path.startswith(f"{prefix}/") else path
        readable += ["--ro-bind", source, path]
    if os.path.isdir(f"{standard}/site-packages"):
        readable += ["--tmpfs", f"{standard}/site-packages", "--remount-ro", f"{standard}/site-packages"]
    for name, file in files.items():
        readable += ["--ro-bind", str(file), f"/job/{name}"]
    inner = [
        "prlimit", *_limits(limits), bubblewrap,
        "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session",
        "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--hostname", "sandbox", *readable,
        *(word for descriptor in seccomp for word in ("--seccomp", str(descriptor))),
        "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", "--size", str(limits.disk), "--tmpfs", "/tmp",
        "--remount-ro", "/", "--chdir", "/tmp", "--", executable, "-S", "-B", f"/job/{script}",
        str(limits.processes + 1), *arguments,
    ]  # fmt: skip
    if stage is None:
        return inner
    # bubblewrap runs as a user of its own, who may not be allowed to see the interpreter's folder (/root/...).
    user = str(_USER + number % _USERS)
    mount = 'mount --bind "$1" "$2" && shift 2 && exec setpriv --reuid "$0" --regid "$0" --clear-groups "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, user, prefix, str(stage), *inner]


def bare_command(folder: Path, script: str, argument: str, files: Mapping[str, Path], limits: Limits) -> list[str]:
    """The command that runs `script` without a sandbox, with a copy of `files` in a folder below `folder`."""
    job = folder / script.removesuffix(".py")
    job.mkdir(exist_ok=True)
    for name, file in files.items():
        shutil.copyfile(file, job / name)
    # Without a namespace, a limit on processes would count all processes of the user; 0 means no limit.
    command = [os.path.realpath(sys.executable), "-S", "-B", str(job / script), "0", str(job / argument)]
    limiter = shutil.which("prlimit")
    return [limiter, *_limits(limits), *command] if limiter else command


def _limits(limits: Limits) -> list[str]:
    """prlimit's options, except the limit on processes, which the script in the sandbox sets itself."""
    return [
        f"--cpu={limits.cpu_seconds}", f"--as={limits.memory}", f"--nofile={limits.files}", f"--fsize={limits.disk}",
        "--core=0",
    ]  # fmt: skip


@functools.cache
def _interpreter() -> tuple[str, str, list[str]]:
    """This Python's prefix, its executable and the shared libraries that it and its standard library need."""
    prefix = os.path.realpath(sys.base_prefix)
    executable = os.path.realpath(sys.executable)
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("lib-dynload/*.so"))
    listing = subprocess.run(["ldd", executable, *map(str, modules)], capture_output=True, text=True).stdout
    words = {word for line in listing.splitlines() for word in line.split() if word.startswith("/")}
    libraries = sorted(word for word in words if not word.endswith(":") and os.path.isfile(word))
    return prefix, executable, libraries


@functools.cache
def _stage() -> Path:
    """An empty folder that every user can enter, as the mount point for the interpreter."""
    folder = Path(tempfile.mkdtemp(prefix="beamplatform-python-"))
    folder.chmod(0o755)
    atexit.register(os.rmdir, folder)
    return folder
