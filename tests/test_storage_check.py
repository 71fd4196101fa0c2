"""A place for results that cannot be used is named before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from beamplatform.errors import UserError
from beamplatform.io import storage_check
from beamplatform.io.storage_check import check_free, check_writable, checked_location

NO_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
NOBODY = 65534


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_location("--storage", "runs") == str(tmp_path / "runs")
    assert checked_location("--storage", f"file://{tmp_path}/runs") == str(tmp_path / "runs")
    check_writable("--storage", str(tmp_path / "deep" / "runs"))
    assert not list(tmp_path.iterdir()), "nothing is made"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("foo://x", r"--storage foo://x: cannot be used \(ValueError: Protocol not known: foo\)"),
        ("s3://", "names no bucket or folder; give one, such as s3://BUCKET/sweeps"),
        ("s3:bucket/x", r"a URI begins with s3://; a folder of this name is ./s3:bucket/x"),
        ("memory://x", "other processes do not see what is in memory"),
    ],
)
def test_locations_that_cannot_be_used(location: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        checked_location("--storage", location)
    assert "\n" not in str(caught.value)


def test_a_uri_that_can_only_be_read() -> None:
    with pytest.raises(UserError, match=r"--storage http://127.0.0.1:1/x: cannot be used"):
        check_writable("--storage", "http://127.0.0.1:1/x")


def test_s3_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    for name in NO_CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"NoCredentialsError: Unable to locate credentials.*AWS_ACCESS_KEY_ID"):
        checked_location("--storage", "s3://bucket-of-this-test/runs")


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(storage_check, "SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match="TimeoutError: no answer in 0 s"):
            checked_location("--storage", "s3://silent-bucket/runs")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, message in (("file", "/file: is a file; name a"), ("file/below", "below: .*/file is a file; name a")):
        with pytest.raises(UserError, match=f"--answers .*{message}"):
            check_writable("--answers", str(tmp_path / place))


def test_a_folder_that_is_read_only() -> None:
    """Root may write everywhere, so that a process of another user asks."""
    if (asking := os.fork()) == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setresuid(NOBODY, NOBODY, NOBODY)
            with pytest.raises(UserError, match="the folder /usr cannot be written to"):
                check_writable("--storage", "/usr/runs")
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(asking, 0)[1]) == 0


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_free("--storage x", tmp_path)
    monkeypatch.setattr(storage_check, "LEAST_FREE", 2**70)  # no disk has so much
    with pytest.raises(UserError, match=r"--storage x: the disk is full: \d+ MiB are free"):
        check_free("--storage x", tmp_path / "not" / "there")


def test_a_home_folder_and_what_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked_location("--storage", "~/runs") == str(tmp_path / "runs")
    with pytest.raises(UserError, match="--storage file://: names no folder"):
        checked_location("--storage", "file://")
    with pytest.raises(UserError, match="without line breaks"):
        checked_location("--storage", "a\nb")
