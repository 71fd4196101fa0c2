"""Everything a sweep keeps, on an S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from safetensors.torch import load_file
from small import command

from beamplatform.io.storage import list_folders, local_folder, put_folder, read_text, remove_folder, write_text
from beamplatform.training.checkpoint_store import CheckpointStore, describe

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("forked_ray")]


def test_files_and_folders(bucket: str, tmp_path: Path) -> None:
    assert read_text(f"{bucket}/a/b.txt") is None
    write_text(f"{bucket}/a/b.txt", "first")
    write_text(f"{bucket}/a/b.txt", "second")
    assert read_text(f"{bucket}/a/b.txt") == "second" and list_folders(bucket) == [f"{bucket}/a"]
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "x").write_text("content")
    put_folder(tmp_path / "source", f"{bucket}/a/folder", last="x")
    with local_folder(f"{bucket}/a/folder") as folder:
        assert (folder / "sub" / "x").read_text() == "content"
    # What another process writes is seen, whatever was listed before.
    other = f"from beamplatform.io.storage import write_text; write_text('{bucket}/c/d.txt', 'other')"
    subprocess.run([sys.executable, "-c", other], check=True, timeout=900)
    assert read_text(f"{bucket}/c/d.txt") == "other" and list_folders(bucket) == [f"{bucket}/a", f"{bucket}/c"]
    remove_folder(f"{bucket}/a")
    remove_folder(f"{bucket}/nothing")
    assert list_folders(bucket) == [f"{bucket}/c"]


def test_checkpoints(bucket: str) -> None:
    store = CheckpointStore(f"{bucket}/run/checkpoints")
    assert store.newest() is None
    for step in (1, 2, 3):
        with store.writing(step) as folder:
            (folder / "worker.bin").write_bytes(bytes([step]) * 100)
            files = {"worker.bin": describe(folder / "worker.bin")}
        store.commit(step, files)
    assert store.steps() == [3, 2] and store.newest() == 3
    with store.writing(3) as folder:
        (folder / "worker.bin").write_bytes(b"altered" * 20)
    assert store.newest() == 2, "what was altered is not used"
    store.clear()
    assert store.steps() == []


@pytest.mark.timeout(1200)
def test_a_sweep_keeps_everything_there_and_is_resumed_from_there(bucket: str, root: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    arguments = ["--methods", "lora", "--seeds", "0", "--name", "s", "--storage", f"{bucket}/sweeps"]
    quick = ["--set", "training.max_steps=20", "--set", "training.checkpoint_every=5"]
    done = forked.run(
        *command(root, *arguments, *quick, "--set", "evaluation.max_records=2")[1:],
        folder=tmp_path,
        environment=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = json.loads(read_text(f"{bucket}/sweeps/s/ledger.json") or "")
    (trial,) = list_folders(f"{bucket}/sweeps/s/trials")
    assert entry["state"] == "trained" and list_folders(trial) == [f"{trial}/export", f"{trial}/predictions"]
    with local_folder(f"{trial}/export") as folder:
        assert load_file(folder / "adapter_model.safetensors")
    assert not list(tmp_path.rglob("adapter_model.safetensors")) or "mlartifacts" in str(
        next(tmp_path.rglob("adapter_model.safetensors"))
    )
    # From another folder, which knows nothing of the first, but the tracking store.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    line = [root / "pipelines" / "sweep.py", "--suite", "commonsense", "--resume"]
    store = ["--storage", f"{bucket}/sweeps", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    again = forked.run(*line, *store, folder=elsewhere, environment=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Going on with sweep s: 1 trials" in again.stdout and "] trained" not in again.stdout
    bad = forked.run(*line[:-1], "--storage", "s3://no-such-bucket/x", folder=elsewhere, environment=environment)
    assert bad.returncode == 2 and "error: --storage s3://no-such-bucket/x: cannot be " in bad.stderr, bad.stderr
