"""One program against its tests: two sandboxes, a pipe each way between them, and a verdict."""

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

from beamplatform.sandbox.bubblewrap import HERE, Limits, bare_command, find_bubblewrap, sandbox_command

_LONGEST_VERDICT = 64 * 2**10
_numbers = itertools.count()


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

    Args:
        program: the whole source that a model wrote.
        test: what must run without an error. Names that it does not define are the program's.
        setup: trusted source that the test needs (the prompt, imports).
        names: the program's own even where `setup` or Python has such a name, too.
        sandboxed: False runs the program with this process's rights, limited in time and memory only.

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
        commands = [
            sandbox_command(bubblewrap, script, found, limits, number=next(_numbers), arguments=[f"/job/{argument}"])
            if bubblewrap
            else bare_command(folder, script, argument, found, limits)
            for script, argument, found in (
                ("candidate.py", "program.py", files[0]),
                ("judge.py", "job.json", files[1]),
            )
        ]
        return _run(commands[0], commands[1], limits, folder=None if bubblewrap else folder)


def _run(candidate: list[str], judge: list[str], limits: Limits, folder: Path | None) -> Verdict:
    """Both at once; in a sandbox, or else (`folder`) as they are, in that folder."""
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


def _start(command: list[str], stdin: int, stdout: int, stderr: int, folder: Path | None) -> subprocess.Popen[bytes]:
    """With no environment but PATH, and no other descriptors."""
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    return subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, cwd=folder or "/", start_new_session=True
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the first process of the sandbox's namespace, and with it all others; bubblewrap, its parent, then ends."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children():
            child.kill()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:  # it had not come as far as its namespace
        process.kill()
        process.wait()


def _verdict(descriptor: int, seconds: float) -> Verdict:
    deadline, text = time.monotonic() + seconds, b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return Verdict(False, f"not done after {seconds:g} seconds")
        piece = os.read(descriptor, 65536)
        text = (text + piece)[-_LONGEST_VERDICT:]
        if not piece:
            break
    try:
        found = json.loads(text.splitlines()[-1])
        return Verdict(found["passed"] is True, str(found["reason"]))
    except (ValueError, IndexError, KeyError, TypeError):
        return Verdict(False, f"the tests ended without a verdict: {text.decode(errors='replace').strip()[-300:]}")
