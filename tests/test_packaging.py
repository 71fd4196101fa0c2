"""What is installed: source roots, packages, declared dependencies, and bounds that files must agree on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from setuptools import find_packages

# Imported names whose distribution is called otherwise; every other one is its own distribution's name.
DISTRIBUTIONS = {"yaml": "pyyaml"}


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(pyproject: Mapping[str, Any], extra: str | None = None) -> dict[str, Requirement]:
    """The base requirements, or those of one extra, by canonical name."""
    project = pyproject["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def python(code: str, folder: Path) -> str:
    """What `python -c` prints in `folder`, which is then the first entry of its import path."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported(folder: Path) -> Iterator[tuple[Path, str]]:
    """The top-level names that the modules of `folder` import from elsewhere, inside functions too."""
    own = {path.stem for path in folder.iterdir()} | {"beamlora", "beamplatform"}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names:
                yield path, name


def test_platform_stays_the_standard_library_s(root: Path) -> None:
    assert not (root / "platform" / "__init__.py").exists()
    system, file = python("import platform; print(platform.system(), platform.__file__)", root).split(maxsplit=1)
    assert system
    assert root not in Path(file).parents


def test_every_package_folder_is_installed(root: Path, pyproject: dict[str, Any]) -> None:
    find = pyproject["tool"]["setuptools"]["packages"]["find"]
    declared = {
        root / where / package.replace(".", "/")
        for where in find["where"]
        for package in find_packages(str(root / where), include=find["include"])
    }
    sources = [root / "beamlora", root / "platform" / "beamplatform"]
    with_code = {path.parent for source in sources for path in source.rglob("*.py")}
    assert declared == with_code, "a folder with modules but without __init__.py (or above it) is not installed"


def test_shipped_files_are_package_data(root: Path, pyproject: dict[str, Any]) -> None:
    source = root / "platform" / "beamplatform"
    globs = pyproject["tool"]["setuptools"]["package-data"]
    covered = {
        path
        for package, patterns in globs.items()
        for pattern in patterns
        for path in (root / "platform" / package.replace(".", "/")).glob(
            f"{pattern}/*" if pattern.endswith("**") else pattern
        )
    }
    shipped = {p for p in source.rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc"}}
    assert any(path.suffix == ".safetensors" for path in shipped)
    assert shipped <= covered


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import beamlora", "ray deepspeed mlflow datasets vllm pydantic_settings beamplatform"),
        ("import beamplatform.config.suite", "torch ray deepspeed mlflow transformers vllm matplotlib"),
    ],
)
def test_imports_stay_light(root: Path, statement: str, unwanted: str) -> None:
    loaded = python(f"import sys; {statement}; print(*sorted(set(sys.modules) & set({unwanted.split()!r})))", root)
    assert loaded == ""


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("beamlora", []), ("platform/beamplatform", ["platform", "vllm"]), ("pipelines", ["platform"])],
)
def test_imports_are_declared(root: Path, pyproject: dict[str, Any], folder: str, extras: list[str]) -> None:
    declared = set(requirements(pyproject)).union(*(requirements(pyproject, extra) for extra in extras))
    # beamlora meets DeepSpeed only where the caller's optimizer is DeepSpeed's, and imports it there.
    optional = {"deepspeed"} if folder == "beamlora" else set()
    undeclared = [
        f"{path.relative_to(root)}: {name}"
        for path, name in imported(root / folder)
        if not path.with_name(f"{name}.py").exists()  # a script of the sandbox, beside the one it imports
        and canonicalize_name(DISTRIBUTIONS.get(name, name)) not in declared | optional
    ]
    assert undeclared == []


def test_platform_narrows_the_base_bounds(pyproject: dict[str, Any]) -> None:
    """pip gets both together: whatever satisfies the platform's bound must satisfy the base bound."""
    base, platform = requirements(pyproject), requirements(pyproject, "platform")
    for name in {"torch", "transformers"}:
        installed = metadata.version(name)
        assert base[name].specifier.contains(installed)
        lower, upper = (
            next(Version(s.version) for s in platform[name].specifier if s.operator == operator)
            for operator in (">=", "<")
        )
        assert base[name].specifier.contains(lower)
        assert all(upper <= Version(s.version) for s in base[name].specifier if s.operator == "<")


def test_installed_releases_are_within_bounds(pyproject: dict[str, Any]) -> None:
    outside = {
        name: metadata.version(name)
        for group in (None, "platform")
        for name, requirement in requirements(pyproject, group).items()
        if not requirement.specifier.contains(metadata.version(name))
    }
    assert outside == {}


def test_oldest_environment_is_the_lower_bounds(root: Path, pyproject: dict[str, Any]) -> None:
    script = (root / "scripts" / "test_beamlora_oldest.sh").read_text(encoding="utf-8")
    tested = dict(re.findall(r'"(\w+)==([\d.]+)\.\*"', script))
    base = requirements(pyproject)
    assert tested == {
        name: next(s.version for s in base[name].specifier if s.operator == ">=")
        for name in ("torch", "transformers", "peft")
    }


def test_commands_in_the_readme_exist(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+) *:", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^ *(?:\$ )?|`)make ([a-z-]+)", readme, re.MULTILINE))
    assert {"sweep", "test"} <= named <= targets
