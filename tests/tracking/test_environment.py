from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from beamplatform.tracking import environment as exported
from beamplatform.tracking.environment import _git, environment, environment_tags


def test_environment_names_what_a_run_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["pipelines/sweep.py", "--tracking-uri", "https://me:secret@host"]
    monkeypatch.setattr(sys, "argv", command)
    found = environment()
    assert exported is environment
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert found["packages"]["mlflow"] == importlib.metadata.version("mlflow")
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["memory_bytes"] > 2**28
    assert found["command_line"] == ["pipelines/sweep.py", "--tracking-uri", "https://me:***@host"]
    assert json.loads(json.dumps(found)) == found
    tags = environment_tags(found)
    assert tags["python"] == found["python"] and "secret" not in tags["command_line"]
    assert all(isinstance(value, str) for value in tags.values())


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_and_dirty_flag(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("a = 1\n")
    assert _git(file) is None
    git(tmp_path, "init", "--quiet")
    assert _git(file) is None, "a file that the repository around it does not hold"
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    assert _git(file) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "notes.txt").write_text("untracked files do not change a run")
    assert _git(file) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    file.write_text("a = 2\n")
    assert _git(file) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": True}


def test_tags_name_the_gpus_where_there_are_any() -> None:
    found = environment()
    found["hardware"]["gpus"] = [{"name": "NVIDIA H100", "memory": "81559 MiB", "driver": "570"}] * 2
    found["git"] = {"commit": "abc", "dirty": True}
    tags = environment_tags(found)
    assert tags["hardware"] == "2 x NVIDIA H100"
    assert (tags["mlflow.source.git.commit"], tags["git.dirty"]) == ("abc", "true")
