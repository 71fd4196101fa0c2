"""Checkpoints are complete or absent, and refused by name when they are not what was written."""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path

import pytest

from beamplatform.training.checkpoint_store import CheckpointStore, DamagedCheckpoint, describe, verify


@pytest.fixture(params=["folder", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    """In a folder, and in an object store: fsspec's in memory, which cannot rename either."""
    return CheckpointStore(str(tmp_path / "run") if request.param == "folder" else f"memory://{uuid.uuid4()}/run")


def put(store: CheckpointStore, step: int, *, commit: bool = True) -> None:
    files = {}
    for worker in range(2):
        with store.writing(step) as folder:
            path = folder / f"worker-{worker}"
            path.write_text(f"step {step} of worker {worker}" * 100)
            files[path.name] = describe(path)
    if commit:
        store.commit(step, files)


def test_what_was_written_comes_back(store: CheckpointStore) -> None:
    assert store.newest() is None
    put(store, 20)
    assert store.steps() == [20] and store.newest() == 20
    with store.open(20) as folder:
        verify(folder)
        assert (folder / "worker-1").read_text().startswith("step 20 of worker 1")


def test_the_newest_two_are_kept(store: CheckpointStore) -> None:
    for step in (5, 100, 10_000, 200_000):
        put(store, step)
    assert store.steps() == [200_000, 10_000]
    store.clear()
    assert store.steps() == [] and store.newest() is None


def test_one_that_was_not_finished_does_not_exist(store: CheckpointStore) -> None:
    put(store, 1)
    put(store, 2, commit=False)  # killed after the last file and before the manifest
    assert store.steps() == [1] and store.newest() == 1
    put(store, 2)
    assert store.steps() == [2, 1]


def damage(folder: Path, how: str) -> None:
    path = folder / "worker-0"
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "altered":
        path.write_bytes(content[:-1] + b"!")
    elif how == "missing":
        path.unlink()
    else:
        (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "worker-0 has 1799 bytes instead of 1800"),
        ("altered", "worker-0 was altered: its SHA-256 differs"),
        ("missing", "worker-0 is missing"),
        ("unreadable", "manifest.json cannot be read"),
    ],
)
def test_a_damaged_one_is_refused_by_name(
    how: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(str(tmp_path))
    put(store, 1)
    put(store, 2)
    damage(tmp_path / "step-00000002", how)
    with pytest.raises(DamagedCheckpoint, match=said):
        verify(tmp_path / "step-00000002")
    with caplog.at_level(logging.WARNING):
        assert store.newest() == 1
    assert f"checkpoint {tmp_path}/step-00000002 is not used: {said}" in caplog.text
    damage(tmp_path / "step-00000001", how)
    assert store.newest() is None


def test_manifest_says_sizes_and_hashes(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    put(store, 3)
    manifest = json.loads((tmp_path / "step-00000003" / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {"worker-0": 1800, "worker-1": 1800}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file is in the way")
    with pytest.raises(OSError, match="run"), CheckpointStore(str(tmp_path / "run")).writing(1):
        pass
