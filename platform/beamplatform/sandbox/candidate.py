"""Runs a program inside its sandbox, and answers calls to the program's functions.

Usage: `candidate.py PROCESSES SOURCE`. It reads calls from stdin and writes answers to stdout. The first answer says
that the program is about to run.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import wire


def main() -> None:
    wire.limit_processes(int(sys.argv[1]))
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    with open(sys.argv[2], encoding="utf-8", errors="surrogatepass") as file:
        source = file.read()
    objects: list[Any] = []
    failure: BaseException | None = None
    namespace: dict[str, Any] = {"__name__": "__candidate__", "__builtins__": __builtins__}

    def refer(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    wire.send(answers, wire.STARTED)
    try:
        exec(compile(source, "<program>", "exec"), namespace)
    except BaseException as error:
        failure = error
    while (call := wire.receive(calls)) is not None:
        try:
            if failure is not None:
                raise failure
            target = objects[call["ref"]] if "ref" in call else namespace[call["name"]]
            arguments = wire.decode(call["arguments"], objects.__getitem__)
            if call["do"] == "call":
                value = target(*arguments[0], **arguments[1])
            elif call["do"] == "get":
                value = getattr(target, arguments) if "attribute" in call else target
            else:
                setattr(target, *arguments)
                value = None
            answer: dict[str, Any] = {"value": wire.encode(value, refer)}
        except BaseException as error:
            answer = {"error": [type(error).__name__, str(error)[:1000]]}
        wire.send(answers, answer)


main()
