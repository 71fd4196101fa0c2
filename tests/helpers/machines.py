"""Two machines that SSH reaches, made in a box (scripts/in_a_box.sh): the box itself, and one inside with a network,
processes, a home folder and a /tmp of its own. They share the folder /tmp/shared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

HEAD, WORKER = "10.77.0.1", "10.77.0.2"
PORT = 2222
PROGRAMS = ("/usr/sbin/sshd", "ssh", "rsync", "ip", "unshare", "nsenter")
_INSIDE = (
    "mount --bind /tmp/shared /tmp/other/shared && mount --rbind /tmp/other /tmp && read -r && "
    "exec /usr/sbin/sshd -D -f ~/.ssh/sshd_config"
)


def only_in_a_box() -> None:
    """Skip a test elsewhere: it would end every Ray on this machine."""
    if os.environ.get("BEAMLORA_BOX") != "1":
        pytest.skip("only in a box, because it ends every Ray on its machine: make test-cluster")


@contextmanager
def two_machines(login: str, login_of_worker: str) -> Iterator[Path]:
    """The home folder of whoever logs in, the same path on both; SSH's key for it is ~/.ssh/key.

    Args:
        login: what a shell on the first machine, HEAD, does when it starts.
        login_of_worker: on the second, WORKER.
    """
    only_in_a_box()
    if os.geteuid() != 0:
        pytest.skip("only root may make a second machine")
    for program in PROGRAMS:
        if not shutil.which(program):
            pytest.skip(f"{program} is absent: install openssh-server, openssh-client, rsync, iproute2 and util-linux")
    home, shared, other = Path.home(), Path("/tmp/shared"), Path("/tmp/other")
    shared.mkdir()
    _as_from_an_image(home / "node")
    _ssh(home / ".ssh")
    shutil.copytree(home, other / "home", symlinks=True)
    (other / "shared").mkdir()
    for folder, text in ((home, login), (other / "home", login_of_worker)):
        (folder / ".bashrc").write_text(f"export PATH={home}/node/bin:$PATH\n{text}")
    Path("/run/sshd").mkdir(exist_ok=True)
    outer = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", str(home / ".ssh" / "sshd_config")])
    inner = subprocess.Popen(
        ["unshare", "--kill-child", "--net", "--pid", "--mount", "--fork", "--mount-proc", "bash", "-c", _INSIDE],
        stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: bool(psutil.Process(inner.pid).children()), 20)
        _connect(psutil.Process(inner.pid).children()[0].pid)
        inner.communicate("go\n", timeout=0.1)
    except subprocess.TimeoutExpired:  # its server runs
        yield home
    finally:
        for process in (inner, outer):
            process.kill()
            process.wait()
        subprocess.run(["ip", "link", "del", "head"], capture_output=True)  # else a later Ray takes its address


def _as_from_an_image(folder: Path) -> None:
    """What a node has before anything is installed: Python, Ray and all that the project needs; not the project.

    A virtual environment that reads this one's packages, with commands that run in it.
    """
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


def _ssh(folder: Path) -> None:
    """Settings of an OpenSSH server on a port of its own, and of its clients, with keys made for it."""
    folder.mkdir(mode=0o700)
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "config").write_text(f"Host 10.77.0.*\n  Port {PORT}\n")
    (folder / "sshd_config").write_text(
        f"Port {PORT}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\n"
        "PidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )


def _connect(inside: int) -> None:
    """A cable between the two networks; every address beyond lies at its other end."""
    within = f"nsenter --target {inside} --net "
    for line in (
        f"ip link add head type veth peer name worker netns {inside}",
        f"ip addr add {HEAD}/24 dev head", "ip link set head up", "ip route add default dev head",
        f"{within}ip addr add {WORKER}/24 dev worker", f"{within}ip link set worker up", f"{within}ip link set lo up",
        f"{within}ip route add default dev worker",
    ):  # fmt: skip
        subprocess.run(line.split(), check=True)
