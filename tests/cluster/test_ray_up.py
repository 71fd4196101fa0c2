"""`ray up`, a sweep and `ray down` as a user types them, over SSH, on machines made for it: make test-cluster.

The cluster is cluster.local.yaml, which has cluster.yaml's own commands. What stands in for the image with all packages
installed, is a virtual environment that reads this one's: the installation itself runs.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from machines import HEAD, WORKER, only_in_a_box, two_machines
from waiting import wait_until

from beamplatform.tracking import Tracker

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

MLFLOW, DASHBOARD = 5000, 8265

SWEEP = [
    "--suite", "commonsense", "--preset", "tiny", "--methods", "beamlora", "--seeds", "0", "--name", "s", "--no-probe",
    "--set", "evaluation.tasks=[boolq]", "--set", "evaluation.max_records=8", "--set", "data.validation_records=8",
]  # fmt: skip


def as_typed() -> dict[str, str]:
    """The environment of a user whose virtual environment is this one."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@dataclass(frozen=True)
class User:
    """Who types commands in the repository's root.

    Attributes:
        home: also on the machines of the cluster.
        configuration: of the cluster, for `ray up`.
    """

    root: Path
    home: Path
    configuration: Path
    environment: dict[str, str] = field(default_factory=as_typed)

    def types(self, *line: str, timeout: float = 600) -> str:
        """What a command prints that must go well."""
        done = subprocess.run(
            line, cwd=self.root, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout[-20000:]}"
        return done.stdout


@pytest.fixture
def user(root: Path) -> Iterator[User]:
    """cluster.local.yaml for two machines without Docker: what a container's options set, a login sets."""
    home = str(Path.home())
    text = (root / "cluster.local.yaml").read_text(encoding="utf-8").replace("/home/ray", home)
    text = text.replace("[platform,vllm,s3]", "[platform,s3]")  # no GPU here, hence no vLLM for one
    text = text.replace("s3://YOUR-BUCKET", "/tmp/shared")
    cluster: dict[str, Any] = yaml.safe_load(text)
    docker = cluster.pop("docker")

    def login(options: list[str]) -> str:
        pairs = [option.split(maxsplit=1) for option in options]
        return "".join(f"export {value}\n" for flag, value in pairs if flag == "--env")

    everywhere = login(docker["run_options"]) + "export PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0\n"  # 0: no isolation
    cluster["provider"] = {"type": "local", "head_ip": HEAD, "worker_ips": [WORKER]}
    with two_machines(everywhere + login(docker["head_run_options"]), everywhere) as folder:
        cluster["auth"] = {"ssh_user": psutil.Process().username(), "ssh_private_key": str(folder / ".ssh" / "key")}
        file = folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(cluster))
        yield User(root, folder, file)


def listening() -> dict[int, set[str]]:
    """Port -> the addresses on which something listens there, on the head."""
    found: dict[int, set[str]] = {}
    for connection in psutil.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            found.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
    return found


def processes() -> set[str]:
    """Command lines on both machines."""
    return {" ".join(process.info["cmdline"] or [])[:200] for process in psutil.process_iter(["cmdline"])}


def status_of(url: str, token: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_sweep_from_ray_up_to_ray_down(user: User, tmp_path: Path) -> None:
    home, file = user.home, str(user.configuration)
    before, ports = processes(), set(listening())
    token = user.types("ray", "get-auth-token", "--generate").split()[-1]

    user.types("ray", "up", "--yes", file)
    assert listening()[DASHBOARD] == {"127.0.0.1"} and listening()[MLFLOW] == {"127.0.0.1"}
    jobs = f"http://127.0.0.1:{DASHBOARD}/api/jobs/"
    assert status_of(jobs) == 401 and status_of(jobs, "not-the-token") == 403 and status_of(jobs, token) == 200

    # The head sets up the other machine by itself; a trial of two workers, each as large as a machine, waits for it.
    cores = os.cpu_count()
    large = [
        "--set",
        "training.workers=2",
        "--set",
        "training.micro_batch=8",
        "--set",
        f"training.cpus_per_worker={cores}",
    ]
    said = user.types("ray", "submit", file, "pipelines/sweep.py", *SWEEP, *large)
    assert "Compare runs in the MLflow UI" in said, said[-3000:]
    assert len(list(Path("/tmp/ray").glob("session_2*"))) == 1, "the sweep ran on a Ray of its own"
    assert list(Path("/tmp/other/ray").glob("session_2*/logs/worker-*")), "the other machine did no work"
    assert Path("/tmp/shared/sweeps/s/sweep.json").exists()

    tracker = Tracker(f"http://127.0.0.1:{MLFLOW}", "commonsense")
    (run,) = tracker.trial_runs(sweep="s")
    assert 0 <= run.metrics["eval/boolq"] <= 1 and run.metrics["train/loss"] > 0

    user.types("ray", "rsync-down", file, f"{home}/mlflow/", f"{tmp_path}/mlflow/")
    at_home = Tracker(f"sqlite:///{tmp_path}/mlflow/mlflow.db", "commonsense")
    assert [known.run_id for known in at_home.trial_runs(sweep="s")] == [run.run_id]

    user.types("ray", "down", "--yes", file)
    wait_until(lambda: processes() <= before, 60)
    assert set(listening()) == ports


def test_the_readme_s_slurm_job_on_one_node(root: Path, tmp_path: Path) -> None:
    """In the place of SLURM's two commands: a host's name, and the job as it is."""
    only_in_a_box()
    readme = (root / "README.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"( +#!/bin/bash\n +#SBATCH .*?)\n\n", readme, re.DOTALL)
    job = textwrap.dedent(recipe).replace("--min-nodes 4", "--min-nodes 1")
    written = "--suite commonsense --data-dir DATA"
    assert written in job
    job = job.replace(written, shlex.join(SWEEP)).replace("--storage runs", f"--storage {tmp_path}")
    (tmp_path / "job.sh").write_text(job)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in (("scontrol", "hostname"), ("srun", 'exec "$@"')):
        (programs / name).write_text(f"#!/bin/bash\n{does}\n")
        (programs / name).chmod(0o755)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    user = User(root, Path.home(), tmp_path)
    user.environment.update(SLURM_JOB_NODELIST="this", MLFLOW_TRACKING_URI=store)
    user.environment["PATH"] = f"{programs}:{user.environment['PATH']}"
    user.types("ray", "get-auth-token", "--generate")
    before = processes()
    user.types("bash", str(tmp_path / "job.sh"))
    (run,) = Tracker(store, "commonsense").trial_runs(sweep="s")
    assert 0 <= run.metrics["eval/boolq"] <= 1
    wait_until(lambda: processes() <= before, 60)
