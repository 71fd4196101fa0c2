from __future__ import annotations

import base64
import http.server
import os
import shlex
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beamplatform.errors import UserError
from beamplatform.tracking.store import check_store, redact, resolve_uri, ui_command


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_default_is_where_a_bare_mlflow_ui_looks(folder: Path) -> None:
    from mlflow.tracking import get_tracking_uri

    assert resolve_uri() == f"sqlite:///{folder}/mlflow.db"
    assert resolve_uri() == get_tracking_uri()


def test_environment_is_respected_and_an_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://host:5000/")
    assert resolve_uri() == "https://host:5000"
    assert resolve_uri("http://other") == "http://other"


def test_relative_files_mean_the_same_in_every_process(folder: Path) -> None:
    assert resolve_uri("sqlite:///runs/a.db") == f"sqlite:///{folder}/runs/a.db"
    assert resolve_uri("sqlite:////data/a.db") == "sqlite:////data/a.db"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mlruns", "is a folder"),
        ("file:///tmp/mlruns", "is a folder"),
        ("sqlite:///:memory:", "no file"),
        ("sqlite://", "no file"),
        ("ftp://user:secret@host", "no known kind"),
    ],
)
def test_unusable_uris_are_refused_in_one_line(uri: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_uri(uri)
    assert words in str(caught.value) and "sqlite:///mlflow.db" in str(caught.value)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_ui_command_is_bound_to_this_machine_and_survives_the_shell() -> None:
    words = shlex.split(ui_command("sqlite:////data/my runs/mlflow.db"))
    assert words[1:] == [
        "ui",
        "--backend-store-uri",
        "sqlite:////data/my runs/mlflow.db",
        "--host",
        "127.0.0.1",
        "--port",
        "5000",
    ]
    assert Path(words[0]).name == "mlflow"
    assert ui_command("https://me:secret@host:5000") == "https://me:***@host:5000"


def test_ui_command_names_a_program_that_the_shell_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    program = shlex.split(ui_command("sqlite:////data/mlflow.db"))[0]
    assert os.access(program, os.X_OK)


def test_passwords_are_hidden() -> None:
    assert redact("postgresql://me:s3cret@db:5432/mlflow") == "postgresql://me:***@db:5432/mlflow"
    assert redact("https://host:5000/path") == "https://host:5000/path"


def refused(uri: str, *, create: bool = True) -> str:
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        check_store(uri, create=create)
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_server_that_is_down(free_port: int) -> None:
    message = refused(f"http://127.0.0.1:{free_port}")
    assert f"127.0.0.1:{free_port} does not answer (connection refused)" in message
    assert "MLFLOW_TRACKING_URI" in message


def test_server_that_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "no answer in 5 s" in refused(f"http://127.0.0.1:{silent.getsockname()[1]}")


@contextmanager
def serving(status: int, content_type: str, version: str = "3.17.2") -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:right").decode()
            self.send_response(200 if known else status)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(version.encode() if self.path == "/version" else b"{}")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_server_that_refuses_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(401, "application/json") as uri:
        assert "MLFLOW_TRACKING_USERNAME" in refused(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
        check_store(uri, create=True)


@pytest.mark.parametrize(("status", "content_type"), [(200, "text/html"), (503, "application/json")])
def test_server_that_is_not_mlflow_or_is_not_well(status: int, content_type: str) -> None:
    with serving(status, content_type) as uri:
        assert f"answers HTTP {status}" in refused(uri)


def test_server_of_an_older_release() -> None:
    with serving(200, "application/json", version="2.22.1\n") as uri:
        message = refused(uri)
        assert "runs MLflow 2.22.1, and 3.0 is the oldest that will do: upgrade it" in message
    for fine in ("3.0.0", "4.1", "", "dev"):
        with serving(200, "application/json", version=fine) as uri:
            check_store(uri, create=True)


def test_database_of_another_releases_schema(folder: Path) -> None:
    """MLflow keeps an open store in its process, so another one looks at it."""
    from beamplatform.tracking import Tracker

    path = folder / "mlflow.db"
    Tracker(f"sqlite:///{path}", "suite").prepare()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # MLflow's first revision
    connection.commit()
    connection.close()
    before = path.read_bytes()
    program = f"from beamplatform.tracking import Tracker; Tracker('sqlite:///{path}', 'suite').prepare()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and "UserError" in last and "has the schema of another release of MLflow: copy" in last
    assert f"db upgrade sqlite:///{path}`; nothing was changed in it" in last and path.read_bytes() == before


def test_database_that_is_down(free_port: int) -> None:
    message = refused(f"postgresql+psycopg2://me:secret@127.0.0.1:{free_port}/mlflow")
    assert f"does not answer at 127.0.0.1:{free_port}" in message and "secret" not in message


def test_missing_file_is_made_only_when_writing(folder: Path) -> None:
    uri = f"sqlite:///{folder}/new/mlflow.db"
    assert "no runs are recorded at" in refused(uri, create=False)
    assert not (folder / "new").exists()
    check_store(uri, create=True)
    assert (folder / "new").is_dir()


def test_file_that_is_not_mlflows(folder: Path) -> None:
    (folder / "text.db").write_text("not a database, and long enough to have a header of its own" * 20)
    assert "not a readable SQLite file" in refused(f"sqlite:///{folder}/text.db")
    connection = sqlite3.connect(folder / "other.db")
    connection.execute("CREATE TABLE books (title TEXT)")
    connection.close()
    assert "not one of MLflow's" in refused(f"sqlite:///{folder}/other.db")


def test_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").write_text("")
    assert "cannot be made" in refused(f"sqlite:///{folder}/file/mlflow.db")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("postgresql://host:port/x", "Port could not be cast"),
        ("postgresql://[::1/x", "Invalid IPv6 URL"),
        ("mysql+nothing:///x", "install the driver that it needs"),
        ("http://", "does not answer (unknown host name)"),
    ],
)
def test_databases_that_are_none(uri: str, words: str) -> None:
    assert words in refused(uri)
