"""The driver's credentials reach processes on nodes that have none, and nothing that Ray writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from serving import free_port

SECRET = "hf_of_the_driver_alone"


def test_the_driver_s_credentials_are_handed_to_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.state import list_jobs, list_runtime_envs

    from beamplatform.sweep.cluster.cluster import start_ray
    from beamplatform.sweep.cluster.credentials import NAMES

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # no token of whoever runs this
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of the node")
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": free_port()}  # the usual one is another test's
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        monkeypatch.setenv("HF_TOKEN", SECRET)
        monkeypatch.setenv("AWS_SESSION_TOKEN", "of the driver")
        start_ray()

        @ray.remote
        def known() -> dict[str, str | None]:
            return {name: os.environ.get(name) for name in NAMES}

        seen = ray.get(known.remote())
        assert seen["HF_TOKEN"] == SECRET
        assert seen["AWS_SESSION_TOKEN"] == "of the node", "a node's own come first"
        assert seen["AWS_ACCESS_KEY_ID"] is None

        session = Path(ray._private.worker._global_node.get_session_dir_path())
        told = str(list_jobs(detail=True)) + str(list_runtime_envs(detail=True))
        assert "worker_process_setup_hook" in told and SECRET not in told
        written = [path for path in session.rglob("*") if path.is_file()]
        assert len(written) > 10
        assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    finally:
        ray.shutdown()
        cluster.shutdown()
