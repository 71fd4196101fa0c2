"""How every pipeline ends: an exit code, and one line instead of a traceback where the input was wrong."""

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
"""Errors of the operating system that say what is wrong with a disk, a folder or a limit, whoever ran into it."""


def main_guard(function: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run a pipeline's ``main`` on the command line and exit with its code.

    `UserError`, and an error of the operating system that names a full disk or the like, becomes ``error: <message>``
    on stderr and exit code 2. Ctrl-C becomes exit code 130 (128 + SIGINT, as shells count it), and a reader of the
    output that is gone (``| head``) 141 (128 + SIGPIPE). Any other exception is a defect and keeps its traceback.
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
        with contextlib.suppress(OSError):  # Python would complain when it flushes the output at its end
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
    """Say on one line what was wrong."""
    with contextlib.suppress(OSError):  # standard error may lie on the disk that is full
        print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    return BAD_INPUT


def _open_all_three() -> None:
    """Open what a caller has closed of standard input, output and error: the next file would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the rest of the program
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _speak_utf8() -> None:
    """Start Python again in its UTF-8 mode where the locale has another encoding.

    Tables have signs such as ± that ASCII lacks, and libraries open files in the encoding of the locale. Python does
    the same by itself for the locale C, unless PYTHONUTF8=0 and PYTHONCOERCECLOCALE=0 keep it from that.
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

    Several libraries ask for both when they are imported, and fail without.
    """
    if os.path.isabs(os.path.expanduser("~")):
        return
    home = tempfile.mkdtemp(prefix="beamplatform-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["HOME"] = home
    os.environ.setdefault("USER", str(os.getuid()))
