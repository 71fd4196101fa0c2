"""An S3 server on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from serving import free_port, wait_for


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket; where its server is and who we are stands in the environment, as for any program."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        wait_for(f"http://127.0.0.1:{port}/moto-api/", server)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # another test's server is gone
        s3fs.S3FileSystem().mkdir("beams")
        yield "s3://beams"
    finally:
        server.kill()
        server.wait()
