"""The disk cache: look-ups are cached by content, and making the same plan again loads no large library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from beamplatform.io.disk_cache import cached_json


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "beamlora"


def test_it_is_found_out_once_for_the_same_thing(cache: Path) -> None:
    asked = []

    def find_out() -> dict[str, tuple[int, int]]:
        asked.append(1)
        return {"a": (1, 2)}

    assert cached_json("k", ("x", 1), find_out) == cached_json("k", ("x", 1), find_out) == {"a": [1, 2]}
    assert len(asked) == 1
    cached_json("k", ("x", 2), find_out)
    cached_json("other", ("x", 1), find_out)
    assert len(asked) == 3


def test_a_damaged_file_or_no_place_to_keep_it_is_no_harm(cache: Path) -> None:
    cached_json("k", 1, lambda: "first")
    (file,) = (cache / "k").iterdir()
    file.write_text("{")
    assert cached_json("k", 1, lambda: "second") == "second" and file.read_text() == '"second"'
    (cache / "full").write_text("a file, where a folder would be")
    assert cached_json("full", 1, lambda: "third") == "third"


def test_the_second_dry_run_says_the_same_without_torch_and_transformers(root: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-X", "importtime", str(root / "pipelines" / "sweep.py"), "--suite", "commonsense"]
    line += ["--preset", "tiny", "--methods", "all", "--dry-run"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    said, loaded = [], []
    for _ in range(2):
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
        imports = {entry.rpartition("|")[2].strip() for entry in done.stderr.splitlines() if "import time:" in entry}
        loaded.append(imports & {"torch", "transformers", "peft", "ray", "mlflow"})
    assert said[0] == said[1] and "beamlora" in said[0]
    assert loaded[0] >= {"torch", "transformers"} and loaded[1] == set()
