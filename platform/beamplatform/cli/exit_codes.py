"""Ends every pipeline with an exit code; wrong input gives one line of error instead of a traceback."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import locale
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import NoReturn

from beamplatform.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130
READER_GONE = 141

_OF_THE_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.ENODEV, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ETXTBSY,
}  # fmt: skip
"""Errors of the operating system whose text tells the user what is wrong with a disk, a folder or a limit."""


def main_guard(function: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run a pipeline's ``main`` on the command line and exit with its code.

    `UserError`, and an error of the operating system such as a full disk, becomes ``error: <message>`` on stderr and
    exit code 2. Ctrl-C becomes exit code 130 (128 + SIGINT, as in shells). The exit code is 141 (128 + SIGPIPE) if the
    reader of the output has ended, as in ``| head``. Any other exception is a defect and keeps its traceback.
    """
    _open_all_three()
    _speak_utf8()
    _have_a_home()
    try:
        code = function(None)
        print(end="", flush=True)
    except UserError as error:
        code = _refuse(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # without this, Python complains when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = READER_GONE
    except MemoryError:
        code = _refuse("there is not enough memory on this machine")
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        code = _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
    sys.exit(code)


def _refuse(message: str) -> int:
    """Print the message on one line of stderr, and return the exit code for bad input."""
    with contextlib.suppress(OSError):  # standard error may lie on the disk that is full
        print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    return BAD_INPUT


def _open_all_three() -> None:
    """Open standard input, output and error if the caller has closed them.

    Otherwise the next file to be opened would get the number of a closed one.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the rest of the program
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _speak_utf8() -> None:
    """Start Python again in its UTF-8 mode if the locale has another encoding.

    Tables contain signs such as ± that ASCII lacks, and libraries open files in the encoding of the locale. For the
    locale C Python does the same by itself, unless PYTHONUTF8=0 and PYTHONCOERCECLOCALE=0 prevent it.
    """
    if locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8") and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.environ.pop("PYTHONIOENCODING", None)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _have_a_home() -> None:
    """Give a user whom the system does not know, as in a container, a name and a home folder for this run.

    Several libraries ask for both when they are imported, and fail if there are none.
    """
    if os.path.isabs(os.path.expanduser("~")):
        return
    home = tempfile.mkdtemp(prefix="beamplatform-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["HOME"] = home
    os.environ.setdefault("USER", str(os.getuid()))
