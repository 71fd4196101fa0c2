"""What the head of a cluster that `ray up` made says of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from beamplatform.errors import UserError
from beamplatform.sweep.launched import FILE, Launched, launched
from beamplatform.training.worker import Destination


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    return tmp_path


def write(home: Path, max_workers: int, **kinds: dict[str, object]) -> None:
    config = {"max_workers": max_workers, "head_node_type": "head", "available_node_types": {"head": {}, **kinds}}
    (home / FILE).write_text(yaml.safe_dump(config))


def test_no_other_cluster_grows(home: Path) -> None:
    assert launched() == Launched(0, 0, 0) and not launched().grows(1)


def test_the_best_nodes_count_as_far_as_there_may_be_some(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = {"CPU": 96, "GPU": 8}, {"CPU": 48, "GPU": 4}
    write(home, 3, small={"max_workers": 9, "resources": small}, large={"max_workers": 2, "resources": large})
    assert launched() == Launched(3, 96 + 96 + 48, 8 + 8 + 4)
    assert launched().grows(1) and launched().grows(3) and not launched().grows(4)
    monkeypatch.delenv("RAY_ADDRESS")
    assert launched() == Launched(0, 0, 0), "another Ray than the head's own"


def test_the_head_s_own_folder_is_no_storage_for_nodes_to_come(home: Path, root: Path) -> None:
    """Started as a user would, on a head with a real Ray."""
    from ray.cluster_utils import Cluster

    write(home, 2)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        line = [sys.executable, root / "pipelines" / "sweep.py", "--suite", "commonsense", "--preset", "tiny"]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        done = subprocess.run(line, env=environment, cwd=home, capture_output=True, text=True, timeout=60)
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


def test_own_machines_do_not_say_what_they_have(home: Path) -> None:
    write(home, 2)
    assert launched() == Launched(2, 0, 0)
