"""Runs a program's tests, in a sandbox of their own.

Usage: `judge.py PROCESSES JOB`. It writes calls of the program's functions to stdout and reads the answers from stdin.
JOB is a JSON file {"setup": source, "test": source, "names": [names of program functions that the test calls]}. The
line READY on stderr says that both sandboxes run. The last line there is the verdict {"passed": bool, "reason": text}.
Names that neither the tests nor Python define refer to the program.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from typing import Any, NoReturn

import wire


class Ended(BaseException):
    """The program has ended, or has sent an invalid answer.

    This is not an Exception, so that no test can catch it.
    """


def main() -> NoReturn:
    answers, calls, verdicts = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(2), "w")
    wire.limit_processes(int(sys.argv[1]))
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    with open(sys.argv[2], encoding="utf-8") as file:
        job = json.load(file)
    if wire.receive(answers) != wire.STARTED:  # sent before any line of the program ran
        os._exit(1)
    verdicts.write(wire.READY + "\n")
    verdicts.flush()

    def ask(message: dict[str, Any], arguments: Any) -> Any:
        def refer(value: Any) -> int:
            raise Ended(f"a test passes a {type(value).__name__}, which cannot be sent to the program")

        try:
            plain = _plain(arguments)
            try:
                wire.send(calls, {**message, "arguments": wire.encode(plain, refer)})
                answer = wire.receive(answers)
            except OSError:
                answer = None
            if answer is None:
                raise Ended("the program ended")
            if "error" in answer:
                name, text = answer["error"]
                kind = getattr(builtins, str(name), RuntimeError)
                usual = isinstance(kind, type) and issubclass(kind, Exception)
                raise _Raised((kind if usual else RuntimeError)(str(text)[:1000]), str(name))
            return wire.decode(answer["value"], lambda number: Remote({"ref": number}))
        except _Raised as raised:
            raise raised.error from None
        except Ended:
            raise
        except Exception as error:
            raise Ended(f"the program answered with no value ({type(error).__name__})") from None

    class Remote:
        """A function, class or object of the program."""

        def __init__(self, message: dict[str, Any]) -> None:
            object.__setattr__(self, "_message", message)

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            return ask({"do": "call", **self._message}, (list(arguments), named))

        def __getattr__(self, name: str) -> Any:
            return ask({"do": "get", "attribute": True, **self._message}, name)

        def __setattr__(self, name: str, value: Any) -> None:
            ask({"do": "set", **self._message}, (name, value))

    def _plain(value: Any) -> Any:
        if type(value) is Remote:
            message = value._message
            if "ref" in message:
                return wire.Reference(message["ref"])
            return _plain(ask({"do": "get", **message}, None))
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(_plain(item) for item in value)
        if type(value) is dict:
            return {_plain(key): _plain(item) for key, item in value.items()}
        return value

    class Names(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            if hasattr(builtins, name):
                raise KeyError(name)
            return Remote({"name": name})

    names = Names({"__name__": "__judge__"})
    passed, reason = False, ""
    try:
        exec(compile(job["setup"], "<setup>", "exec"), names, names)
        for name in job["names"]:
            names[name] = Remote({"name": name})
        # Functions look up their globals without `__missing__`, so the program's names must be stored by now.
        exec(compile(job["test"], "<test>", "exec"), names, names)
        passed = True
    except Ended as error:
        reason = str(error)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
    verdicts.write("\n" + json.dumps({"passed": passed, "reason": reason[:2000]}) + "\n")
    verdicts.flush()
    os._exit(0)


class _Raised(Exception):
    def __init__(self, error: Exception, name: str) -> None:
        super().__init__(name)
        self.error = error


main()
