"""`pipelines/evaluate.py`: adapters of any origin, several at once, and what an interruption costs."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import forked
import pytest
from tiny_adapters import two_adapters_and_a_merged_model

from beamplatform.evaluation.predictions import read_predictions

TINY = ["--suite", "commonsense", "--preset", "tiny", "--tasks", "boolq,piqa"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters that PEFT made, and one of them merged."""
    found, merged = two_adapters_and_a_merged_model(tmp_path_factory.mktemp("adapters"))
    return [*found, merged]


def start(root: Path, folder: Path, *arguments: object) -> forked.Program:
    output = folder.with_name(f"{folder.name}-output")
    output.mkdir(exist_ok=True)
    return forked.start(root / "pipelines" / "evaluate.py", *TINY, *arguments, output=output, folder=folder)


def run(root: Path, folder: Path, *arguments: object) -> str:
    process = start(root, folder, *arguments)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return output


def lines(folder: Path) -> list[str]:
    return [line for file in (folder / "runs" / "answers").glob("*/*.jsonl") for line in file.read_text().splitlines()]


def test_several_models_at_once_score_as_each_alone(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    named = [word for adapter in adapters for word in ("--adapter", adapter)]
    run(root, tmp_path, *named, "--max-records", 20, "--output", "all")
    assert len(lines(tmp_path)) == 3 * 40
    for number, adapter in enumerate(adapters, start=1):
        run(root, tmp_path, "--adapter", adapter, "--max-records", 20, "--output", "one", "--ask-again")
        together, alone = (tmp_path / "all" / str(number)), tmp_path / "one"
        assert (together / "scores.json").read_text() == (alone / "scores.json").read_text()
        for task in ("boolq", "piqa"):
            file = Path("predictions") / f"{task}.parquet"
            assert read_predictions(together / file) == read_predictions(alone / file)
    assert len(lines(tmp_path)) == 3 * 40, "--ask-again keeps nothing"
    output = run(root, tmp_path, "--adapter", adapters[0], "--max-records", 20)
    assert "average" in output and len(lines(tmp_path)) == 3 * 40, "what was answered is not asked again"
    settings = json.loads((tmp_path / "one" / "scores.json").read_text())["settings"]
    assert settings["beams"] == 1 and settings["engine"].startswith("transformers") and settings["dtype"] == "float32"
    texts = [read_predictions(tmp_path / "all" / str(n) / "predictions" / "boolq.parquet") for n in (1, 2, 3)]
    assert texts[0] != texts[1] and [p.completion for p in texts[1]] == [p.completion for p in texts[2]]


def test_every_model_has_a_run_in_mlflow_and_none_in_a_comparison(
    root: Path, adapters: list[Path], tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    output = run(root, tmp_path, "--adapter", adapters[0], "--max-records", 5)
    assert "mlflow ui" in output
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("commonsense").experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["export"] == str(adapters[0])
    assert {"eval/boolq", "eval/piqa", "eval/average", "standard_error/boolq"} <= set(found.data.metrics)
    files = {Path(file.path).name for file in client.list_artifacts(found.info.run_id, "predictions")}
    assert files == {f"{task}.{end}" for task in ("boolq", "piqa") for end in ("json", "parquet")}
    assert '"type": "table"' in found.data.tags["mlflow.loggedArtifacts"]
    done = forked.run(root / "pipelines" / "compare.py", "--suite", "commonsense", folder=tmp_path)
    assert done.returncode == 2 and "has no sweeps" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    root: Path, adapters: list[Path], tmp_path: Path, how: signal.Signals
) -> None:
    arguments = ("--adapter", adapters[0], "--set", "evaluation.batch_size=2")
    process = start(root, tmp_path, *arguments)
    while len(lines(tmp_path)) < 20 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), errors
    if how == signal.SIGINT:
        assert "the same command goes on from there" in errors and "Traceback" not in errors
    before = len(lines(tmp_path))
    assert 20 <= before < 200
    run(root, tmp_path, *arguments, "--output", "resumed")
    after = [json.loads(line)[0] for line in lines(tmp_path)]
    assert len(after) == len(set(after)) == 200, "no question was asked twice"
    run(root, tmp_path, *arguments, "--output", "whole", "--ask-again")
    for name in ("scores.json", "predictions/boolq.parquet", "predictions/piqa.parquet"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_wrong_is_one_line(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "trial" / "export").mkdir(parents=True)
    again = f"{adapters[0].parent}/./{adapters[0].name}"
    for arguments, message in (
        (("--adapter", adapters[0], "--adapter", again), "the same folder is named twice"),
        (("--output", "file"), "--output file: is a file"),
        (("--adapter", "trial"), "did you mean trial/export?"),
    ):
        process = start(root, tmp_path, *arguments)
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 2 and len(errors.strip().splitlines()) == 1 and message in errors, errors


def test_a_bad_adapter_beside_a_good_one_costs_only_itself(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    good, second, merged = adapters
    bad = Path(shutil.copytree(second, tmp_path / "bad"))
    config = bad / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": "4"}))
    wrong = f"{config}: r must be a whole number, at least 1; found '4'"
    for other in (good, merged):
        arguments = ("--adapter", bad, "--adapter", other, "--max-records", 5, "--output", other.name)
        process = start(root, tmp_path, *arguments)
        output, errors = process.communicate(timeout=900)
        assert process.returncode == 1, errors
        assert output.count(wrong) == 1 and output.count("average") == 1 and "Traceback" not in errors
        assert [path.name for path in (tmp_path / other.name).iterdir()] == ["2"], "numbered as given"
    broken = Path(shutil.copytree(merged, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"")
    process = start(root, tmp_path, "--adapter", bad, "--adapter", broken)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 2 and len(errors.strip().splitlines()) == 1, errors
    assert wrong in errors and f"{broken / 'model.safetensors'}: not a readable safetensors file" in errors


def test_a_base_model_that_lacks_a_tensor_is_not_asked(root: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from beamplatform.models.loading import resolve_path

    base = Path(shutil.copytree(resolve_path("tiny"), tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    process = start(root, tmp_path, "--model", base)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 2 and "no model.norm.weight; " in errors and len(errors.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_an_adapter_of_another_base_model_is_told(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    shutil.copytree(adapters[0], tmp_path / "other")
    config = tmp_path / "other" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/another"}))
    output = run(root, tmp_path, "--adapter", "other", "--max-records", 2)
    assert "note: other says it was made for org/another, and is evaluated on tiny" in output
    assert "says it was made" not in run(root, tmp_path, "--adapter", adapters[0], "--max-records", 2)
