"""What the head of a cluster that `ray up` made says of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from autoscaler import autoscaler

from beamplatform.errors import UserError
from beamplatform.sweep.cluster.autoscaler import AutoscalerLimits, autoscaler_limits
from beamplatform.training.worker import Destination


def configuration(max_workers: int, **kinds: dict[str, object]) -> dict[str, object]:
    return {"max_workers": max_workers, "head_node_type": "head", "available_node_types": {"head": {}, **kinds}}


def test_the_best_nodes_count_as_far_as_there_may_be_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    large, small = {"CPU": 96, "GPU": 8}, {"CPU": 48, "GPU": 4}
    kinds = {"small": {"max_workers": 9, "resources": small}, "large": {"max_workers": 2, "resources": large}}
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with autoscaler(tmp_path, configuration(3, **kinds)):
        assert autoscaler_limits() == AutoscalerLimits(3, 96 + 96 + 48, 8 + 8 + 4)
        assert autoscaler_limits().grows(1) and autoscaler_limits().grows(3) and not autoscaler_limits().grows(4)
        monkeypatch.delenv("RAY_ADDRESS")
        assert autoscaler_limits() == AutoscalerLimits(0, 0, 0), "another Ray than the head's own"
        monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert autoscaler_limits() == AutoscalerLimits(0, 0, 0) and not autoscaler_limits().grows(1), (
        "its file is still there"
    )


def test_the_head_s_own_folder_is_no_storage_for_nodes_to_come(tmp_path: Path, root: Path) -> None:
    """Started as a user would, on a head with a real Ray."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        line = [sys.executable, root / "pipelines" / "sweep.py", "--suite", "commonsense", "--preset", "tiny"]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        with autoscaler(tmp_path, configuration(2)):
            done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    finally:
        cluster.shutdown()
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: --storage runs: the other nodes of this cluster do not see this folder of its head; give a URI such as "
        "s3://BUCKET/sweeps or a folder that all nodes share, here or as BEAMLORA_STORAGE\n"
    )


def test_a_worker_sees_whether_it_shares_the_driver_s_folder(tmp_path: Path) -> None:
    shared = tmp_path / "sweep"
    destination = Destination(str(shared / "trials" / "t" / "export"), str(shared / "train"))
    with pytest.raises(
        UserError, match=rf"--storage: the node \S+ does not see {shared}; give a folder that all nodes"
    ):
        destination.check()
    shared.mkdir()
    destination.check()
    Destination("s3://bucket/s/t/export", "s3://bucket/s/train").check()


def test_own_machines_do_not_say_what_they_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with autoscaler(tmp_path, configuration(2)):
        assert autoscaler_limits() == AutoscalerLimits(2, 0, 0)
