"""The registered adapter: the right one, once, with its card, and loaded again by one call."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_adapters import adapter_on_tiny

from beamplatform.report.files import make_report
from beamplatform.report.registry import register_best
from beamplatform.tracking import Tracker
from beamplatform.world import tiny_model_path


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    """Two seeds of BeamLoRA, with real adapters on the shipped model, and one of LoRA."""
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "commonsense")
    tracker.prepare()
    parent = tracker.start_sweep("s", {}, {})
    for method, seed, loss, score in (("beamlora", 0, 0.5, 0.9), ("beamlora", 1, 0.4, 0.8), ("lora", 0, 0.1, 0.99)):
        tags = {"method": method, "seed": seed, "sweep": "s", "stage": "done", "preset": "p", "configuration": method}
        params = {"seed": seed, "r": 4, "model.path": "tiny", "data.source": "embedded"}
        run = tracker.start_trial(parent, f"{method}-seed{seed}", params, tags)
        tracker.log_metrics(run, [(0, {"eval/boolq": score, "eval/average": score, "validation/loss": loss})])
        adapter_on_tiny(tmp_path / f"{method}{seed}", seed)
        tracker.log_folder(run, tmp_path / f"{method}{seed}", "export")
        tracker.finish(run, "FINISHED")
    tracker.finish(parent, "FINISHED")
    return tracker


def test_the_best_adapter_is_registered_once_and_loads_again(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    report = make_report(tracker, tracker.trial_runs(every_status=True))
    uri = register_best(report)
    assert uri == "models:/commonsense-beamlora/1" == register_best(report)
    (version,) = tracker.client.search_model_versions("name = 'commonsense-beamlora'")
    for text in ("Base model: tiny", "embedded", "beamlora-seed1", "0.4000", "| BoolQ | 80.0 |", "licences"):
        assert text in version.description, text
    assert version.tags["sweep"] == "s" and version.tags["base_model"] == "tiny"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    folder = mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "again"))
    loaded = load_file(Path(folder) / "adapter_model.safetensors")
    expected = load_file(tmp_path / "beamlora1" / "adapter_model.safetensors")
    assert loaded.keys() == expected.keys() and all((loaded[name] == expected[name]).all() for name in expected)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_path()), folder)


def test_without_beamlora_nothing_is_registered(tracker: Tracker) -> None:
    assert register_best(make_report(tracker, tracker.trial_runs(every_status=True), methods=["lora"])) is None
    assert tracker.client.search_registered_models() == []
