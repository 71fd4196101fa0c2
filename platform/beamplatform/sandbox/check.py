"""Runs one program against its tests, in two sandboxes with a pipe in each direction, and returns a verdict."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beamplatform.errors import UserError
from beamplatform.sandbox.bubblewrap import HERE, Limits, bare_command, find_bubblewrap, sandbox_command
from beamplatform.sandbox.seccomp import opened
from beamplatform.sandbox.wire import READY

_LONGEST_VERDICT = 64 * 2**10
_START_SECONDS = 60.0
_STARTS = 3
"""The most tries to start the sandboxes: a briefly overloaded machine must not fail a correct program."""
_numbers = itertools.count(97 * os.getpid())


class SandboxError(UserError):
    """The sandboxes did not start, which says nothing about the program."""


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed its tests, and if not, why."""

    passed: bool
    reason: str = ""


def check_program(
    program: str,
    test: str,
    *,
    setup: str = "",
    names: Sequence[str] = (),
    limits: Limits | None = None,
    sandboxed: bool = True,
) -> Verdict:
    """Run `test` against `program`; safe to call from several threads.

    Only plain values pass between the program and its tests: numbers, texts, collections, and references to the
    program's own objects. So the tests do not see that a program changes an argument in place, or returns a generator.

    Args:
        program: the whole source that a model wrote.
        test: source that must run without an error. Names that it does not define refer to the program.
        setup: trusted source that the test needs (the prompt, imports).
        names: names that refer to the program even if `setup` or Python defines them too.
        sandboxed: if False, the program runs with this process's rights, limited only in time and memory.

    Raises:
        UserError: no sandbox can be made here.
    """
    limits = limits or Limits()
    bubblewrap = find_bubblewrap() if sandboxed else None
    with tempfile.TemporaryDirectory(prefix="beamplatform-sandbox-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        source, job = folder / "program.py", folder / "job.json"
        source.write_text(program, encoding="utf-8", errors="surrogatepass")
        job.write_text(json.dumps({"setup": setup, "test": test, "names": list(names)}), encoding="utf-8")
        wire = {"wire.py": HERE / "wire.py"}
        files = [{"candidate.py": HERE / "candidate.py", "program.py": source, **wire}]
        files.append({"judge.py": HERE / "judge.py", "job.json": job, **wire})
        scripts = (("candidate.py", "program.py", files[0]), ("judge.py", "job.json", files[1]))
        for _ in range(_STARTS):
            with contextlib.ExitStack() as stack:
                commands: list[_Command] = []
                for script, argument, script_files in scripts:
                    if bubblewrap is None:
                        commands.append((bare_command(folder, script, argument, script_files, limits), ()))
                        continue
                    seccomp = stack.enter_context(opened())
                    command = sandbox_command(
                        bubblewrap, script, script_files, limits, number=next(_numbers), seccomp=seccomp,
                        arguments=[f"/job/{argument}"],
                    )  # fmt: skip
                    commands.append((command, seccomp))
                verdict = _run(commands[0], commands[1], limits, folder=None if bubblewrap else folder)
            if isinstance(verdict, Verdict):
                return verdict
        raise SandboxError(f"the sandbox did not start in {_STARTS} tries: {verdict or 'it said nothing'}")


_Command = tuple[list[str], tuple[int, ...]]
"""A command, and the descriptors that it inherits."""


def _run(candidate: _Command, judge: _Command, limits: Limits, folder: Path | None) -> Verdict | str:
    """Run the program and its judge at the same time, in sandboxes or, without sandboxes, in `folder`.

    Returns the verdict, or a text that says why they did not start.
    """
    calls_out, calls_in = os.pipe()
    answers_out, answers_in = os.pipe()
    verdict_out, verdict_in = os.pipe()
    ends = [calls_out, calls_in, answers_out, answers_in, verdict_in]
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.append(_start(candidate, calls_out, answers_in, subprocess.DEVNULL, folder))
        running.append(_start(judge, answers_out, calls_in, verdict_in, folder))
        for end in ends:
            os.close(end)
        ends = []
        return _verdict(verdict_out, limits.seconds)
    finally:
        for end in (*ends, verdict_out):
            os.close(end)
        for process in running:
            if folder is None:
                _end(process)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _start(command: _Command, stdin: int, stdout: int, stderr: int, folder: Path | None) -> subprocess.Popen[bytes]:
    """Start a command whose only environment variable is PATH, and which inherits only its own descriptors."""
    line, inherited = command
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    return subprocess.Popen(
        line, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, cwd=folder or "/", start_new_session=True,
        pass_fds=inherited,
    )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the first process of the sandbox's namespace, which ends its other processes and then bubblewrap."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children():
            child.kill()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:  # bubblewrap has not made its namespace yet
        process.kill()
        process.wait()


def _verdict(descriptor: int, seconds: float) -> Verdict | str:
    """Wait for the verdict, at most `seconds` from the moment when both sandboxes run.

    If they never run, returns what they wrote instead.
    """
    ready, text = f"{READY}\n".encode(), b""
    deadline, started = time.monotonic() + _START_SECONDS, False
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            if not started:
                return f"nothing for {_START_SECONDS:g} seconds"
            return Verdict(False, f"not done after {seconds:g} seconds")
        piece = os.read(descriptor, 65536)
        text = (text + piece)[-_LONGEST_VERDICT:]
        if not started and ready in text:
            started, deadline = True, time.monotonic() + seconds
            text = text.partition(ready)[2]
        if not piece:
            break
    if not started:
        return text.decode(errors="replace").strip()[-300:]
    try:
        verdict = json.loads(text.splitlines()[-1])
        return Verdict(verdict["passed"] is True, str(verdict["reason"]))
    except (ValueError, IndexError, KeyError, TypeError):
        return Verdict(False, f"the tests ended without a verdict: {text.decode(errors='replace').strip()[-300:]}")
