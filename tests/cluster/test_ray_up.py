"""`ray up`, a sweep and `ray down` as a user types them, over SSH, on a machine made for it: make test-cluster.

The cluster is cluster.local.yaml, with cluster.yaml's own commands. What stands in for a machine from an image with all
packages installed, is a virtual environment that reads this one's packages: the installation itself runs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from waiting import wait_until

from beamplatform.tracking import Tracker

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

MLFLOW, DASHBOARD = 5000, 8265

SWEEP = [
    "--suite", "commonsense", "--preset", "tiny", "--methods", "beamlora", "--seeds", "0", "--name", "s", "--no-probe",
    "--set", "evaluation.tasks=[boolq]", "--set", "evaluation.max_records=8", "--set", "data.validation_records=8",
]  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """The one machine there is: the user's and the cluster's head.

    Attributes:
        home: of whoever logs in.
        configuration: of the cluster, for `ray up`.
        environment: of a user who types commands.
    """

    home: Path
    configuration: Path
    environment: dict[str, str]

    def run(self, *line: str, timeout: float = 600) -> str:
        """What a command prints that must go well, in the repository's root."""
        done = subprocess.run(
            line, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout[-6000:]}"
        return done.stdout


@pytest.fixture
def machine(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    only_in_a_box()
    for program in ("/usr/sbin/sshd", "ssh", "rsync"):
        if not shutil.which(program):
            pytest.skip(f"{program} is absent: install openssh-server, openssh-client and rsync")
    monkeypatch.chdir(root)
    home = Path.home()
    node = a_node(home / "node")
    configuration = a_configuration(root, home, node)
    server = an_ssh_server(home / ".ssh")
    yield Machine(home, configuration, as_typed())
    server.terminate()
    server.wait()


def only_in_a_box() -> None:
    if os.environ.get("BEAMLORA_BOX") != "1":
        pytest.skip("only in a box, because it ends every Ray on its machine: make test-cluster")


def as_typed() -> dict[str, str]:
    """The environment of a user whose virtual environment is this one."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def a_node(folder: Path) -> Path:
    """What is installed on a node before `ray up`: Python with Ray, as in the images that cluster.yaml names."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "as_in_an_image.pth").write_text(sysconfig.get_path("purelib"))
    for name, module, function in (
        ("pip", "pip._internal.cli.main", "main"),
        ("ray", "ray.scripts.scripts", "main"),
        ("mlflow", "mlflow.cli", "cli"),
    ):
        script = folder / "bin" / name
        script.write_text(f"#!{folder}/bin/python\nfrom {module} import {function}\n{function}()\n")
        script.chmod(0o755)
    return folder


def a_configuration(root: Path, home: Path, node: Path) -> Path:
    """cluster.local.yaml for this machine, which has no Docker: what a container's options set, a login sets."""
    text = (root / "cluster.local.yaml").read_text(encoding="utf-8").replace("/home/ray", str(home))
    text = text.replace("[platform,vllm,s3]", "[platform,s3]")  # no GPU here, hence no vLLM for one
    text = text.replace("s3://YOUR-BUCKET", str(home / "shared"))
    cluster: dict[str, Any] = yaml.safe_load(text)
    docker = cluster.pop("docker")
    options = [option.split(maxsplit=1) for option in docker["run_options"] + docker["head_run_options"]]
    variables = [f"export {value}\n" for flag, value in options if flag == "--env"]
    offline = "export PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0 MLFLOW_DISABLE_TELEMETRY=true\n"  # 0: no isolation
    (home / ".bashrc").write_text(f"export PATH={node}/bin:$PATH\n{offline}{''.join(variables)}")
    cluster["provider"] = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
    cluster["auth"] = {"ssh_user": psutil.Process().username(), "ssh_private_key": str(home / ".ssh" / "key")}
    file = home / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster))
    return file


def an_ssh_server(folder: Path) -> subprocess.Popen[bytes]:
    """OpenSSH on localhost, on a port of its own and with keys made for it."""
    folder.mkdir(mode=0o700)
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "config").write_text("Host 127.0.0.1\n  Port 2222\n")
    (folder / "sshd_config").write_text(
        f"Port 2222\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\n"
        "PidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")])
    wait_until(lambda: 2222 in listening(), 20)
    return server


def listening() -> dict[int, set[str]]:
    """Port -> the addresses on which something listens there."""
    found: dict[int, set[str]] = {}
    for connection in psutil.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            found.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
    return found


def processes() -> set[str]:
    return {" ".join(process.info["cmdline"] or [])[:200] for process in psutil.process_iter(["cmdline"])}


def status_of(url: str, token: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_sweep_from_ray_up_to_ray_down(machine: Machine, tmp_path: Path) -> None:
    home, file = machine.home, str(machine.configuration)
    before, ports = processes(), set(listening())
    token = machine.run("ray", "get-auth-token", "--generate").split()[-1]

    machine.run("ray", "up", "--yes", file)
    assert listening()[DASHBOARD] == {"127.0.0.1"} and listening()[MLFLOW] == {"127.0.0.1"}
    jobs = f"http://127.0.0.1:{DASHBOARD}/api/jobs/"
    assert status_of(jobs) == 401 and status_of(jobs, "not-the-token") == 403 and status_of(jobs, token) == 200

    said = machine.run("ray", "submit", file, "pipelines/sweep.py", *SWEEP)
    assert "Going on" not in said and "Compare runs in the MLflow UI" in said, said[-3000:]
    assert (home / "shared" / "sweeps" / "s" / "sweep.json").exists()

    tracker = Tracker(f"http://127.0.0.1:{MLFLOW}", "commonsense")
    (run,) = tracker.trial_runs(sweep="s")
    assert 0 <= run.metrics["eval/boolq"] <= 1 and run.metrics["train/loss"] > 0
    assert len(list(Path("/tmp/ray").glob("session_2*"))) == 1, "the sweep ran on a Ray of its own"

    machine.run("ray", "rsync-down", file, f"{home}/mlflow/", f"{tmp_path}/mlflow/")
    at_home = Tracker(f"sqlite:///{tmp_path}/mlflow/mlflow.db", "commonsense")
    assert [known.run_id for known in at_home.trial_runs(sweep="s")] == [run.run_id]

    machine.run("ray", "down", "--yes", file)
    wait_until(lambda: processes() <= before, 60)
    assert set(listening()) == ports


def test_the_readme_s_slurm_job_on_one_node(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of SLURM's two commands: a host's name, and the job as it is."""
    only_in_a_box()
    readme = (root / "README.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"( +#!/bin/bash\n +#SBATCH .*?)\n\n", readme, re.DOTALL)
    job = textwrap.dedent(recipe).replace("--min-nodes 4", "--min-nodes 1")
    written = "--suite commonsense --data-dir DATA"
    assert written in job
    (tmp_path / "job.sh").write_text(
        job.replace(written, shlex.join(SWEEP)).replace("--storage runs", f"--storage {tmp_path}")
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in (("scontrol", "hostname"), ("srun", 'exec "$@"')):
        (programs / name).write_text(f"#!/bin/bash\n{does}\n")
        (programs / name).chmod(0o755)
    environment = as_typed()
    store = f"sqlite:///{tmp_path}/mlflow.db"
    environment |= {
        "PATH": f"{programs}:{environment['PATH']}", "SLURM_JOB_NODELIST": "this", "MLFLOW_TRACKING_URI": store
    }  # fmt: skip
    subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, check=True, stdout=subprocess.DEVNULL)
    before = processes()
    Machine(tmp_path, tmp_path, environment).run("bash", str(tmp_path / "job.sh"))
    (run,) = Tracker(store, "commonsense").trial_runs(sweep="s")
    assert 0 <= run.metrics["eval/boolq"] <= 1
    wait_until(lambda: processes() <= before, 60)
