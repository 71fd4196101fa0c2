"""The tracking store: resolves its URI, checks that it answers, and says how to open its user interface."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import sqlite3
import sys
from pathlib import Path
from urllib.parse import urlsplit

from beamplatform.errors import UserError, first_line

DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Database servers that MLflow writes to directly, with their usual ports."""

PROBE_SECONDS = 5.0
OLDEST_SERVER = 3
_SQLITE = "sqlite:///"
_EXAMPLES = "sqlite:///mlflow.db for a file, or https://host:5000 for a server"


def resolve_uri(uri: str | None = None) -> str:
    """Resolve the tracking store to a URI that means the same in every process and working folder.

    Args:
        uri: the user's choice. ``None`` means ``MLFLOW_TRACKING_URI``, or else ``mlflow.db`` in the working folder,
            where a bare ``mlflow ui`` looks as well (MLflow 3: ``DEFAULT_TRACKING_URI``).

    Raises:
        UserError: the URI names no store that MLflow 3 writes to. MLflow keeps folders in "maintenance mode" only.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
    scheme = uri.partition("://")[0] if "://" in uri else uri.partition(":")[0] if ":" in uri else ""
    if scheme == "sqlite":
        path = uri.removeprefix(_SQLITE)
        if path == uri or path in ("", ":memory:"):
            raise UserError(f"tracking URI {uri!r} names no file that several processes can share: use {_EXAMPLES}")
        return _SQLITE + str(Path(path).absolute())
    if scheme in ("http", "https"):
        return uri.rstrip("/")
    if scheme.startswith("databricks") or uri == "databricks" or scheme.partition("+")[0] in DATABASES:
        return uri
    if scheme in ("", "file"):
        raise UserError(f"tracking URI {uri!r} is a folder, and MLflow 3 writes to none: use {_EXAMPLES}")
    raise UserError(f"tracking URI {redact(uri)!r} is of no known kind ({scheme}): use {_EXAMPLES}")


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a resolved SQLite URI, or ``None`` for any other store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def redact(text: str) -> str:
    """Return the text with the passwords in its URLs hidden."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]+@", r"\1:***@", text)


def ui_command(uri: str) -> str:
    """Return the command that opens MLflow's user interface on a resolved store, for browsers on this machine only.

    If the store is a server, its address is returned instead.
    """
    if uri.startswith(("http://", "https://", "databricks")):
        return redact(uri)
    return f"{mlflow_program()} ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --port 5000"


def mlflow_program() -> str:
    """Return how to call this environment's `mlflow` in a shell.

    The path is included if the shell would not find this `mlflow` by its name.
    """
    here = Path(sys.executable).with_name("mlflow")
    on_path = shutil.which("mlflow")
    program = "mlflow"
    if here.exists() and (on_path is None or Path(on_path).resolve() != here.resolve()):
        program = os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)
    return shlex.quote(program)


def check_store(uri: str, *, create: bool) -> None:
    """Find out within seconds whether a resolved store can be used; MLflow's own retries take minutes.

    Args:
        create: whether a missing SQLite file is accepted and its folder made.

    Raises:
        UserError: the store does not answer, refuses the credentials, is missing or is not MLflow's.
    """
    path = sqlite_path(uri)
    if path is not None:
        _check_sqlite(path, create=create)
    elif uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif not uri.startswith("databricks"):
        _check_database(uri)


def _check_sqlite(path: Path, *, create: bool) -> None:
    if not path.exists() and not create:
        raise UserError(
            f"no runs are recorded at {path}: start a sweep in this folder first, or name the store with --tracking-uri"
        )
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder of the tracking store {path} cannot be made: {error.strerror}") from error
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UserError(
                f"the tracking store {path} is not writable: name another with MLFLOW_TRACKING_URI=sqlite:///..."
            )
        if not path.exists():
            return
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=PROBE_SECONDS)
        try:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(f"the tracking store {path} is not a readable SQLite file: {error}") from error
    if "experiments" not in tables and (tables or not create):
        raise UserError(
            f"{path} is an SQLite file, but not one of MLflow's: name another with MLFLOW_TRACKING_URI=sqlite:///..."
        )


def _check_server(uri: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    shown = redact(uri)
    try:
        response = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "GET",
            params={"max_results": 1},
            max_retries=0,
            timeout=PROBE_SECONDS,
            raise_on_status=False,
        )
    except MlflowException as error:
        raise UserError(
            f"the tracking server {shown} does not answer ({_reason(error)}): start it, or correct MLFLOW_TRACKING_URI"
        ) from error
    if response.status_code in (401, 403):
        raise UserError(
            f"the tracking server {shown} refuses the credentials (HTTP {response.status_code}): "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if response.status_code != 200 or "json" not in response.headers.get("Content-Type", ""):
        raise UserError(
            f"{shown} answers HTTP {response.status_code}, but not as an MLflow tracking server: "
            "correct MLFLOW_TRACKING_URI"
        )
    version = http_request(
        get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=PROBE_SECONDS, raise_on_status=False
    )
    major = version.text.strip().partition(".")[0] if version.status_code == 200 else ""
    if major.isdecimal() and int(major) < OLDEST_SERVER:
        raise UserError(
            f"the tracking server {shown} runs MLflow {version.text.strip()}, and {OLDEST_SERVER}.0 is the oldest "
            "that will do: upgrade it (its database with `mlflow db upgrade`), or correct MLFLOW_TRACKING_URI"
        )


def _reason(error: Exception) -> str:
    """Return the cause of an error in a few words, taken from urllib3's nested messages."""
    text = str(error)
    for pattern, words in (
        (r"Connection refused", "connection refused"),
        (r"resolve|Name or service|getaddrinfo", "unknown host name"),
        (r"timed? ?out", f"no answer in {PROBE_SECONDS:.0f} s"),
        (r"CERTIFICATE_VERIFY|SSL", "TLS failed"),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return words
    return redact(text.splitlines()[0])[:160]


def _check_database(uri: str) -> None:
    from sqlalchemy import create_engine

    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"the tracking database {redact(uri)}: {error}; correct MLFLOW_TRACKING_URI") from error
    try:
        if host is not None:  # without a host, it is a local socket or a driver's own notation
            port = port or DATABASES[parts.scheme.partition("+")[0]]
            socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"the tracking database {redact(uri)} does not answer at {host}:{port} ({error}): "
            "start it, or correct MLFLOW_TRACKING_URI"
        ) from error
    try:
        create_engine(uri)  # finds the driver, but does not connect
    except Exception as error:  # any error of SQLAlchemy or the driver
        raise UserError(
            f"the tracking database {redact(uri)} cannot be used ({first_line(error)}): install the driver that it "
            "needs, or correct MLFLOW_TRACKING_URI"
        ) from error
