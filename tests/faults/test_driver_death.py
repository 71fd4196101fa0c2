"""A sweep whose driver is killed, or stopped with Ctrl-C, while trials train: nothing of it goes on or holds a core."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

pytestmark = pytest.mark.campaign


def start_sweep(root: Path, folder: Path, address: str | None) -> subprocess.Popen[bytes]:
    """A sweep that would train for long, once its trials report."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_") and k != "RAY_ADDRESS"}
    if address:
        environment["RAY_ADDRESS"] = address
    command = [sys.executable, str(root / "pipelines" / "sweep.py"), "--suite", "commonsense", "--preset", "tiny"]
    command += ["--methods", "lora,dora", "--seeds", "0", "--name", "killed", "--set", "training.max_steps=5000"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
        # A shell's background job, which the tests themselves may be, ignores SIGINT and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    log = folder / "runs" / "killed" / "log.txt"
    deadline = time.monotonic() + 600
    while not (log.exists() and log.read_text().count("Reporting training result") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.5)
    return process


@pytest.mark.timeout(1200)
def test_a_ray_of_its_own_ends_with_the_driver(root: Path, tmp_path: Path) -> None:
    process = start_sweep(root, tmp_path, None)
    children = psutil.Process(process.pid).children(recursive=True)
    names = {child.pid: child.name() for child in children}
    assert "raylet" in names.values()

    process.kill()
    process.wait(timeout=900)

    # Ray's two agents hold nothing, and look for their dead server for a minute before they end.
    _, alive = psutil.wait_procs(children, timeout=900)
    assert all("Agent" in names[child.pid] for child in alive), [names[child.pid] for child in alive]
    _, alive = psutil.wait_procs(alive, timeout=900)
    assert not alive, [names[child.pid] for child in alive]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray cluster that outlives the sweeps, as `ray up` starts one, with room for two trials."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_cluster_gets_everything_back(root: Path, tmp_path: Path, address: str, how: signal.Signals) -> None:
    process = start_sweep(root, tmp_path, address)
    ray.init(address=address, ignore_reinit_error=True)
    in_use = [group for group in ray.util.placement_group_table().values() if group["state"] == "CREATED"]
    assert in_use and ray.available_resources().get("CPU", 0) < 2

    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    assert process.wait(timeout=900) == (130 if how == signal.SIGINT else -signal.SIGKILL)

    deadline = time.monotonic() + 600
    while True:
        groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
        # Ray's own service of the whole cluster stays; it holds no core.
        actors = [
            actor
            for actor in ray._private.state.actors(actor_state_name="ALIVE").values()
            if actor["ActorClassName"] != "_AutoscalingCoordinatorActor"
        ]
        if not groups and not actors and ray.available_resources().get("CPU") == 2:
            return
        assert time.monotonic() < deadline, (groups, actors, ray.available_resources())
        time.sleep(0.5)
