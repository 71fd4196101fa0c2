"""Runs Python programs in processes of their own that need not import torch, transformers and DeepSpeed anew.

Such a process is forked off a server that has imported them once (`multiprocessing` has one). That saves 5 to 10
seconds of processor time, which `python script.py` spends on imports. Everything else is as in a process that was
started anew: arguments, environment, folder, standard output and error, signals, handlers at exit and exit code. What a
program imports, and when, is not: a test that looks at imports starts a real `python`.

Some libraries read the environment while they are imported (huggingface_hub takes its server and its cache from it). A
program whose variables of theirs differ from the server's is started by a real `python`, too. What Ray's C++ part has
read at its import, it can read again, and does so in the forked process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NoReturn


class Program:
    """A started program; its output is in the files `stdout` and `stderr`."""

    def __init__(
        self,
        script: str | Path,
        arguments: Sequence[object],
        *,
        stdout: Path,
        stderr: Path,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        session: bool = False,
    ) -> None:
        """Start it.

        Args:
            script: the program's file.
            arguments: of its command line.
            stdout, stderr: files that take its output; they may be the same.
            folder: where it runs (default: where this process does).
            environment: all of its environment (default: this process's).
            session: whether it leads a session and process group of its own.
        """
        context = multiprocessing.get_context("forkserver")
        _start_server(context)
        settings = {
            "script": str(script), "arguments": [str(one) for one in arguments], "stdout": str(stdout),
            "stderr": str(stderr), "folder": str(folder or Path.cwd()), "session": session,
            "environment": dict(os.environ if environment is None else environment),
        }  # fmt: skip
        self.args = [str(script), *settings["arguments"]]
        self.stdout, self.stderr = stdout, stderr
        self._process: _Forked | _Fresh
        if _read_at_import(settings["environment"]) == _SERVERS_OWN:
            self._process = _Forked(context, settings)
        else:
            self._process = _Fresh(settings)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._process.exit_code(0)

    def wait(self, timeout: float) -> int:
        """Its exit code; negative where a signal ended it."""
        code = self._process.exit_code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it wrote, after its end."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.stdout.read_text(), self.stderr.read_text()


class _Forked:
    """A process that the server forks off."""

    def __init__(self, context: Any, settings: Mapping[str, Any]) -> None:
        self._process = context.Process(target=_run, args=(settings,))
        self._process.start()
        self.pid: int = self._process.pid

    def exit_code(self, timeout: float) -> int | None:
        self._process.join(timeout)
        code: int | None = self._process.exitcode
        return code


class _Fresh:
    """A process of a real `python`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        with open(settings["stdout"], "ab") as stdout, open(settings["stderr"], "ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, settings["script"], *settings["arguments"]],
                cwd=settings["folder"],
                env=settings["environment"],
                stdout=stdout,
                stderr=stderr,
                start_new_session=settings["session"],
                preexec_fn=_heed_interrupts,
            )
        self.pid = self._process.pid

    def exit_code(self, timeout: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None


def _heed_interrupts() -> None:
    """A shell's background job, which the tests themselves may be, ignores SIGINT and hands that down."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


_RAY_READS_LATER = {
    "RAY_ADDRESS", "RAY_RUNTIME_ENV_HOOK", "RAY_AUTH_MODE", "RAY_CLIENT_MODE", "RAY_USAGE_STATS_ENABLED",
    "RAY_AIR_NEW_OUTPUT"
}  # fmt: skip
"""The last four are set by Ray and by sweeps in the tests' own process; none is read while Ray is imported."""


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that libraries of `preloaded_with_ray` read while they are imported.

    Those of Ray's C++ part are read again after the fork: RAY_AUTH_MODE, and all whose names have small letters.
    """
    prefixes = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "XDG_CACHE_HOME")
    names = [name for name in environment if name.startswith("RAY_") and name.isupper()]
    names += [name for name in environment if name.startswith(prefixes)]
    return {name: environment[name] for name in names if name not in _RAY_READS_LATER}


_SERVERS_OWN = _read_at_import(os.environ)
"""As they were before any test changed them."""


def _start_server(context: Any) -> None:
    """Unless it runs already. It finds what to import by PYTHONPATH: Python 3.11's does not look at sys.path."""
    context.set_forkserver_preload(["preloaded_with_ray"])
    before = dict(os.environ)
    paths = [str(Path(__file__).parent), *([before["PYTHONPATH"]] if before.get("PYTHONPATH") else [])]
    for name in _read_at_import(before):
        del os.environ[name]
    os.environ.update(_SERVERS_OWN, PYTHONPATH=os.pathsep.join(paths))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def start(script: str | Path, *arguments: object, output: Path, **options: Any) -> Program:
    """Start a program whose output goes to files of its own below the folder `output`."""
    place = Path(tempfile.mkdtemp(dir=output, prefix=".output-"))
    return Program(script, arguments, stdout=place / "stdout", stderr=place / "stderr", **options)


def run(
    script: str | Path, *arguments: object, timeout: float = 900, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `subprocess.run(..., capture_output=True, text=True)` does."""
    with tempfile.TemporaryDirectory() as name:
        program = start(script, *arguments, output=Path(name), **options)
        stdout, stderr = program.communicate(timeout)
        return subprocess.CompletedProcess(program.args, program.wait(1), stdout, stderr)


def _run(settings: dict[str, Any]) -> None:
    """In the forked process: take the program's output files, and become the program."""
    gc.freeze()  # what the server imported is not garbage; looking through it takes half a second each time
    for name, number in (("stdout", 1), ("stderr", 2)):
        file = os.open(settings[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    become(**{key: settings[key] for key in ("script", "arguments", "folder", "environment", "session")})


def become(
    script: str, arguments: Sequence[str], folder: str, environment: Mapping[str, str], *, session: bool
) -> NoReturn:
    """Make of this forked process what `python SCRIPT ARGUMENTS` would be, and end as Python itself would."""
    if session:
        os.setsid()
    _heed_interrupts()
    os.environ.clear()
    os.environ.update(environment)
    if "ray" in sys.modules:  # RAY_AUTH_MODE, for one, is left behind by a `ray.init` of the tests' own process
        sys.modules["ray._raylet"].Config.initialize("")
    os.chdir(folder)
    sys.argv = [script, *arguments]
    paths = [str(Path(script).resolve().parent), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    code, interrupted = 1, False
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            code = ending.code or 0
        else:
            print(ending.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        interrupted = isinstance(error, KeyboardInterrupt)
    with contextlib.suppress(BaseException):
        threading._shutdown()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if interrupted:  # Python ends by the signal itself, too
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)
