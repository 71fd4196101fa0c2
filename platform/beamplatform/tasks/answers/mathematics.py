"""Whether two answers are the same mathematics, asked of sympy in a process that may be slow, or hang, or die.

Reading LaTeX and comparing what it says is math-verify's work; beyond it, two numbers are equal within a relative
difference of 1e-4. An answer that cannot be read, and a comparison that does not end, are not equal.

    python -m beamplatform.tasks.answers.mathematics

reads a JSON list [gold, answer] per line and writes true or false per line, after a first line that says it is ready.
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
"""Of processor time for one comparison: a verdict must not depend on what else the machine does."""

TOLERANCE = 1e-4
_STARTING = 120.0
_WAITING = 60.0
"""Seconds until a process that takes no processor time either is given up."""
_MEMORY = 4 * 2**30
"""Bytes of address space: 9^{9^{9}} must not take the machine's."""


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
        """None where there is no answer in time, or none at all; the process has then ended."""
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
    """Raises UserError where math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise UserError("evaluation.equivalence=sympy needs math-verify: pip install math-verify")


def same_mathematics(gold: str, answer: str) -> bool:
    r"""Whether sympy says that `answer` is `gold`: 0.25 is \frac{1}{4}, (x+1)^2 is x^2+2x+1.

    Safe to call from several threads, one of which is served at a time.

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

    logging.disable()  # it warns that nobody limits its time
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # the signal ends this process
        try:
            gold, answer = (parse(f"${text}$", parsing_timeout=None) for text in json.loads(line))
            equal = bool(gold and answer) and (verify(gold, answer, timeout_seconds=None) or _close(gold[0], answer[0]))
        except Exception:  # whatever a parser or sympy raises over text that no one checked
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(equal), flush=True)


def _close(gold: object, answer: object) -> bool:
    """Whether both are real numbers within the tolerance."""
    try:
        return math.isclose(float(gold), float(answer), rel_tol=TOLERANCE)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, AttributeError):
        return False


if __name__ == "__main__":
    _serve()
