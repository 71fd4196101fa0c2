"""Sweeps on clusters of several nodes, which are Ray nodes of their own on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small import command
from waiting import wait_until

from beamplatform.tracking import Tracker

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(1200)]

QUICK = [
    "--methods", "beamlora", "--name", "s", "--set", "evaluation.tasks=[boolq]", "--set", "evaluation.max_records=2",
    "--set", "data.validation_records=8",
]  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster whose head has no cores: only the nodes that a test adds do any work."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield made
    made.shutdown()


Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Started]:
    """Start a sweep in a folder, on a cluster or on this machine alone."""
    processes = []

    def started(folder: str, address: str | None, *arguments: str) -> subprocess.Popen[str]:
        place = tmp_path / folder
        place.mkdir()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment["RAY_DEDUP_LOGS"] = "0"  # the log is read here, line by line
        if address is not None:
            environment["RAY_ADDRESS"] = address
        output = (place / "output.txt").open("w")
        line = command(root, *QUICK, *arguments)
        process = subprocess.Popen(line, cwd=place, env=environment, stdout=output, stderr=output, text=True)
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()


def ended(process: subprocess.Popen[str], folder: Path) -> str:
    code = process.wait(400)
    output = (folder / "output.txt").read_text()
    assert code == 0, output + (folder / "runs" / "s" / "log.txt").read_text()[-3000:]
    return output


def log_of(folder: Path) -> str:
    file = folder / "runs" / "s" / "log.txt"
    return file.read_text() if file.exists() else ""


def weights(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("runs/s/trials/*/export/adapter_model.safetensors")
    return load_file(file)


TWO = ["--seeds", "0", "--set", "training.workers=2", "--set", "training.micro_batch=8"]


def test_a_trial_on_two_nodes_is_that_on_one_and_survives_the_loss_of_one(
    cluster: Any, start: Started, tmp_path: Path
) -> None:
    """Three nodes with a core each; the one that is lost is one of the two that train, the third takes its place."""
    steps = ["--set", "training.max_steps=80", "--set", "training.checkpoint_every=4"]
    ended(start("one", None, *TWO, *steps), tmp_path / "one")
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    process = start("three", cluster.address, *TWO, *steps)
    wait_until(lambda: "'step': 10," in log_of(tmp_path / "three"), 200)
    ranks = re.findall(r"ip=\S+, pid=(\d+)\) world_rank=(\d)", log_of(tmp_path / "three"))
    parents = {int(rank): raylet_of(int(pid)) for pid, rank in ranks}
    assert len(parents) == 2 and parents[0] != parents[1], "the two workers are on two nodes"
    lost = next(node for node in nodes if raylet_pid(node) == parents[1])
    cluster.remove_node(lost, allow_graceful=False)
    ended(process, tmp_path / "three")
    assert re.search(r"goes on from step \d+", log_of(tmp_path / "three"))
    one, three = weights(tmp_path / "one"), weights(tmp_path / "three")
    assert one.keys() == three.keys() and all((one[key] == three[key]).all() for key in one)


def test_a_node_that_joins_is_used_by_a_waiting_trial(cluster: Any, start: Started, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    process = start("joined", cluster.address, "--seeds", "0,1", "--set", "training.max_steps=400")
    wait_until(lambda: "'step': 10," in log_of(tmp_path / "joined"), 200)
    assert log_of(tmp_path / "joined").count("world_rank=0") == 1, "there is room for one"
    cluster.add_node(num_cpus=1)
    ended(process, tmp_path / "joined")
    tracker = Tracker(f"sqlite:///{tmp_path}/joined/mlflow.db", "commonsense")
    first, second = (tracker.client.get_run(run.run_id).info for run in tracker.trial_runs(sweep="s"))
    assert second.start_time < first.end_time, "both at once"


def test_a_range_of_workers_starts_with_what_is_there(cluster: Any, start: Started, tmp_path: Path) -> None:
    """A batch of 16 can be shared among 4, 2 or 1; there is room for 3."""
    cluster.add_node(num_cpus=3)
    steps = ["--seeds", "0", "--set", "training.max_steps=20"]
    elastic = start("elastic", cluster.address, *steps, "--set", "training.workers={min: 1, max: 4}")
    ended(elastic, tmp_path / "elastic")
    ended(start("alone", None, *steps), tmp_path / "alone")
    found = []
    for folder in ("elastic", "alone"):
        (run,) = Tracker(f"sqlite:///{tmp_path}/{folder}/mlflow.db", "commonsense").trial_runs(sweep="s")
        found.append(run.metrics)
    assert [metrics["train/workers"] for metrics in found] == [2, 1]
    assert found[0]["train/loss"] == pytest.approx(found[1]["train/loss"], rel=1e-5)


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="a mount of its own needs root")
def test_a_node_that_does_not_see_the_storage(cluster: Any, start: Started, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    hidden = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
    ray = [str(Path(sys.executable).with_name("ray")), "start", f"--address={cluster.address}", "--num-cpus=2"]
    ray.append("--block")
    node = subprocess.Popen(["unshare", "--mount", "sh", "-c", hidden, str(storage), *ray], stdout=subprocess.DEVNULL)
    try:
        time.sleep(10)  # until the node is there
        process = start("apart", cluster.address, "--seeds", "0", "--storage", str(storage))
        assert process.wait(100) == 2
        output = (tmp_path / "apart" / "output.txt").read_text()
        assert re.search(rf"error: --storage {storage}: the node \S+ does not see this folder", output), output
    finally:
        node.terminate()
        node.wait(30)


def raylet_of(pid: int) -> int:
    import psutil

    return next(parent.pid for parent in psutil.Process(pid).parents() if "raylet" in parent.name())


def raylet_pid(node: Any) -> int:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    return int(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
