"""A machine on which Ray cannot start is told so in one line, at once, and a Ray that does not start names its logs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from beamplatform.errors import UserError
from beamplatform.sweep.cluster.machine_check import check_machine, token_without_home


@pytest.fixture(autouse=True)
def own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path that is short enough for sockets; that of `tmp_path` is not."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as name:
        yield Path(name)


def test_a_machine_that_is_well(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_machine()
    monkeypatch.setenv("TMPDIR", str(short))
    check_machine()
    assert not list(short.iterdir())


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_folders_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    long = tmp_path / ("x" * 150)
    long.mkdir()
    (tmp_path / "file").touch()
    for place, message in (
        (long, rf"{name}=.*xxx: this path has \d+ bytes, and Ray's sockets allow \d\d; set RAY_TMPDIR to a shorter"),
        (tmp_path / "none", rf"{name}=.*none: is no folder that can be written to"),
        (tmp_path / "file", rf"{name}=.*file: is no folder that can be written to"),
    ):
        monkeypatch.setenv(name, str(place))
        with pytest.raises(UserError, match=message):
            check_machine()
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check_machine()  # Ray runs already


def test_too_few_open_files() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from beamplatform.sweep.cluster.machine_check import check_machine; check_machine()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "UserError: ulimit -n 64: a process may open 64 files, and Ray needs 1024; raise the hard" in done.stderr


@pytest.mark.parametrize("home", ["", "/proc", "/nowhere/at/all"])
def test_a_home_that_keeps_no_token(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that it is restored afterwards
    token_without_home()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64 and not Path("/nowhere").exists()


def test_a_home_that_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token_without_home()
    assert "RAY_AUTH_TOKEN" not in os.environ and not list(tmp_path.iterdir())


def test_a_ray_that_cannot_start(short: Path) -> None:
    (short / "ray").touch()  # where Ray's folder would be
    done = subprocess.run(
        [sys.executable, "-c", "from beamplatform.sweep.cluster.cluster import start_ray; start_ray()"],
        env={**os.environ, "RAY_TMPDIR": str(short)}, cwd=short, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert "UserError: Ray does not start on this machine (FileExistsError: " in last
    assert last.endswith(f"its logs: {short}/ray/session_latest/logs")


@pytest.mark.parametrize(("failures", "tries"), [(0, 1), (2, 3), (9, 3)])
def test_a_ray_that_is_too_slow_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, tries: int
) -> None:
    """Ray itself is not here; what it says on a loaded machine is."""
    import ray

    from beamplatform.sweep.cluster.cluster import _start_here

    begun: list[object] = []

    def init(**options: object) -> None:
        begun.append(options["address"])
        if len(begun) <= failures:
            raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    if failures < tries:
        _start_here()
    else:
        with pytest.raises(UserError, match=r"does not start .*Exception: The current node timed out during"):
            _start_here()
    assert begun == ["local"] * tries
