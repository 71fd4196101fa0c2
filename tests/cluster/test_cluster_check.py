"""What is wrong with a cluster is found before a sweep is sent to it; a real Ray head answers here."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoscaler import autoscaler
from ray.util import get_node_ip_address
from serving import free_port

from beamplatform.config.sections import TrainingSection
from beamplatform.errors import UserError
from beamplatform.sweep.cluster.health_check import check_cluster

ON_CPU = TrainingSection(max_steps=1, device="cpu")
ON_GPU = TrainingSection(max_steps=1, device="gpu")


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a Ray head with one core."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster.address
    cluster.shutdown()


def refused(monkeypatch: pytest.MonkeyPatch, address: str, training: TrainingSection = ON_CPU) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        check_cluster(training)
    # Ray by itself tries for minutes.
    assert time.monotonic() - started < 60 and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cluster_that_is_well(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", head)
    check_cluster(ON_CPU)
    monkeypatch.delenv("RAY_ADDRESS")
    check_cluster(ON_GPU)  # none is named


def test_no_gpu_where_one_is_needed(head: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = refused(monkeypatch, head, ON_GPU)
    assert f"none of the 1 nodes of the cluster at {head} has one; add nodes with GPUs" in message
    with autoscaler(tmp_path, {"max_workers": 1, "available_node_types": {}, "head_node_type": "head"}):
        check_cluster(ON_GPU)  # they come later


def test_another_version(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.usage import usage_constants
    from ray._raylet import GcsClient

    gcs = GcsClient(address=head)
    key, space = usage_constants.CLUSTER_METADATA_KEY, b"cluster"
    right = gcs.internal_kv_get(key, namespace=space)
    try:
        for changed, message in (
            ({"ray_version": "2.1.0"}, "the cluster runs Ray 2.1.0, and this machine 2."),
            ({"python_version": "3.9.1"}, "the cluster runs Python 3.9.1, and this machine 3."),
        ):
            gcs.internal_kv_put(key, json.dumps(json.loads(right) | changed).encode(), True, space)
            assert message in refused(monkeypatch, head) and "install the same on both" in refused(monkeypatch, head)
    finally:
        gcs.internal_kv_put(key, right, True, space)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    message = refused(monkeypatch, f"127.0.0.1:{port}")
    assert f"RAY_ADDRESS=127.0.0.1:{port}: no cluster answers" in message and "ray up cluster.yaml" in message
    assert "no cluster answers" in refused(monkeypatch, "no-such-host.invalid:6379")
    assert "start it there with `ray submit`" in refused(monkeypatch, "ray://somewhere:10001")


def test_something_else_there(monkeypatch: pytest.MonkeyPatch) -> None:
    own = get_node_ip_address()  # Ray takes localhost for that
    server = http.server.ThreadingHTTPServer((own, 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert "no Ray head" in refused(monkeypatch, f"{own}:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_sweep_says_it_before_anything_else(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    line = [sys.executable, root / "pipelines" / "sweep.py", "--suite", "commonsense", "--preset", "tiny"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 2 and done.stderr.startswith("error: RAY_ADDRESS=127.0.0.1:1: no cluster answers")
    assert not list(tmp_path.iterdir())
