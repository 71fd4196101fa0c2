"""Finds faults of this machine that Ray reports late, in a traceback, or not at all."""

from __future__ import annotations

import os
import resource
import secrets
import tempfile
from pathlib import Path

from beamplatform.errors import UserError
from beamplatform.io.storage_check import check_free

_LONGEST_SOCKET = 107
"""Bytes that Linux leaves for the path of a Unix socket."""

_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest path that Ray adds to the folder for temporary files; `pid` is the driver's process id."""

_LEAST_FILES = 1024
"""A process must be allowed to open this many files, which is Linux's default.

Below some hundreds, Ray's own processes end without a message.
"""


def ray_temp() -> Path:
    """The folder for temporary files in which Ray keeps its sockets and logs, in a subfolder `ray`."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def ray_logs() -> Path:
    """The folder with the logs of the Ray that was started last on this machine."""
    return ray_temp() / "ray" / "session_latest" / "logs"


def check_machine() -> None:
    """Check that Ray can start on this machine. If RAY_ADDRESS names a cluster, Ray runs already.

    Raises:
        UserError: the folder for temporary files is missing, not writable, full or has too long a path, or a process
            may open too few files.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    folder = ray_temp()
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    shown = f"{name}={folder}" if name else str(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{shown}: is no folder that can be written to, as Ray's temporary files need; set RAY_TMPDIR")
    most = _LONGEST_SOCKET - len(_SOCKET.format(pid=os.getpid()))
    if (length := len(os.fsencode(folder.absolute()))) > most:
        raise UserError(
            f"{shown}: this path has {length} bytes, and Ray's sockets allow {most}; set RAY_TMPDIR to a shorter one, "
            "such as /tmp"
        )
    check_free(shown, folder)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < _LEAST_FILES:  # Ray raises the soft limit to the hard one itself
        raise UserError(
            f"ulimit -n {hard}: a process may open {hard} files, and Ray needs {_LEAST_FILES}; raise the hard limit "
            f"(ulimit -n {_LEAST_FILES}, or LimitNOFILE= and --ulimit nofile= of a service or container)"
        )


def token_without_home() -> None:
    """Give Ray a token if it cannot keep one: it would write a new token to the home folder, and fail.

    Ray's processes know each other by the token. Without one, anybody who reaches this machine could use them.
    """
    if any(os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    if (home := os.environ.get("HOME")) and _holds_a_token(Path(home) / ".ray"):
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _holds_a_token(folder: Path) -> bool:
    """Whether Ray's token is in the folder, or can be written there."""
    if (folder / "auth_token").is_file():
        return True
    tested_folder = folder if folder.is_dir() else folder.parent
    try:
        tempfile.TemporaryFile(dir=tested_folder).close()  # try it, because permissions do not say everything
    except OSError:
        return False
    return True
