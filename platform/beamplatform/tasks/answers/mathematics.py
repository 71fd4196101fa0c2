"""Compares two answers as mathematics with sympy, in a process of its own because sympy may be slow, hang or die.

The package math-verify parses the LaTeX and compares the results. In addition, two numbers are equal within a relative
difference of 1e-4. If an answer cannot be parsed or the comparison does not end, the answers are not equal.

    python -m beamplatform.tasks.answers.mathematics

is that process. It first writes a line that says it is ready. Then it reads lines with a JSON list [gold, answer], and
answers each with a line that is true or false.
"""

from __future__ import annotations

import atexit
import json
import math
import resource
import select
import subprocess
import sys
import threading
from importlib.util import find_spec

from beamplatform.errors import UserError

SECONDS = 5.0
"""Limit of one comparison, in seconds of processor time: a verdict must not depend on the machine's other work."""

TOLERANCE = 1e-4
_STARTING = 120.0
_WAITING = 60.0
"""Limit of one comparison, in seconds of wall time, for a process that hangs without using processor time."""
_MEMORY = 4 * 2**30
"""Limit of the process's address space, in bytes: 9^{9^{9}} must not take all of the machine's memory."""


class _Process:
    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        atexit.register(self.end)
        if self._line(_STARTING) is None:
            self.end()
            raise RuntimeError(f"{' '.join(command)} does not start; is math-verify installed?")

    def ask(self, gold: str, answer: str) -> bool | None:
        """Return whether the answers are equal; None if the process does not reply in time or dies.

        After None the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            self._process.stdin.flush()
            line = self._line(_WAITING)
        except OSError:
            line = None
        if line is None:
            self.end()
            return None
        return line.strip() == b"true"

    def end(self) -> None:
        atexit.unregister(self.end)
        self._process.kill()
        self._process.communicate()

    def _line(self, seconds: float) -> bytes | None:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], seconds)
        return (self._process.stdout.readline() or None) if readable else None


_lock = threading.Lock()
_process: _Process | None = None


def can_compare() -> None:
    """Raise UserError if math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise UserError("evaluation.equivalence=sympy needs math-verify: pip install math-verify")


def same_mathematics(gold: str, answer: str) -> bool:
    r"""Whether sympy finds `answer` equal to `gold`, for example 0.25 and \frac{1}{4}, or (x+1)^2 and x^2+2x+1.

    Several threads may call it; they are served one at a time.

    Raises:
        RuntimeError: the process cannot be started.
    """
    global _process
    with _lock:
        if _process is None:
            _process = _Process()
        verdict = _process.ask(gold, answer)
        if verdict is None:
            _process = None
        return bool(verdict)


def _serve() -> None:
    import logging
    import signal

    from math_verify import parse, verify

    logging.disable()  # math-verify would warn that it runs without its own time limits
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # the signal ends this process
        try:
            gold, answer = (parse(f"${text}$", parsing_timeout=None) for text in json.loads(line))
            equal = bool(gold and answer) and (verify(gold, answer, timeout_seconds=None) or _close(gold[0], answer[0]))
        except Exception:  # on unchecked text the parser and sympy may raise anything
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(equal), flush=True)


def _close(gold: object, answer: object) -> bool:
    """Whether both are real numbers and equal within the tolerance."""
    try:
        return math.isclose(float(gold), float(answer), rel_tol=TOLERANCE)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, AttributeError):
        return False


if __name__ == "__main__":
    _serve()
