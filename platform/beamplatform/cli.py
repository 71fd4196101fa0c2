"""How every pipeline ends: an exit code, and one line instead of a traceback where the input was wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from beamplatform.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130


def main_guard(function: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run a pipeline's ``main`` on the command line and exit with its code.

    `UserError` becomes ``error: <message>`` on stderr and exit code 2; Ctrl-C becomes exit code 130 (128 +
    SIGINT, as shells count it). Any other exception is a defect and keeps its traceback.
    """
    try:
        code = function(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)
