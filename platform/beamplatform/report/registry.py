"""Registers the best BeamLoRA adapter of a sweep in MLflow's model registry, with a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beamplatform.metrics import VALIDATION_LOSS
from beamplatform.report.answers import OURS
from beamplatform.report.comparison import Row
from beamplatform.report.files import Report
from beamplatform.report.labels import method_label, task_label

if TYPE_CHECKING:
    from beamplatform.tracking.runs import TrialRecord


def register_best(report: Report) -> str | None:
    """Register one adapter of the chosen configuration: that of the seed with the lowest validation loss.

    `mlflow.artifacts.download_artifacts(uri)` brings it back as a folder that PEFT's `PeftModel.from_pretrained` and
    vLLM load. If the run has a version already, because the sweep was resumed, that version is returned.

    Returns:
        The version's URI, models:/SUITE-beamlora/N; None if BeamLoRA took no part or its adapter was not kept.
    """
    row = report.comparison.row(OURS)
    if row is None:
        return None
    run = min(
        (run for run in report.runs if run.run_id in row.run_ids),
        key=lambda run: (run.metrics.get(VALIDATION_LOSS, float("inf")), run.seed),
    )
    tracker, name = report.tracker, f"{report.comparison.suite}-{OURS}"
    files = {file.path for file in tracker.client.list_artifacts(run.run_id, "export")}
    if "export/adapter_model.safetensors" not in files:
        return None
    from mlflow.exceptions import MlflowException

    for version in tracker.client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run.run_id:
            return f"models:/{name}/{version.version}"
    try:
        tracker.client.create_registered_model(
            name, description=f"BeamLoRA adapters of the suite {report.comparison.suite}"
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {"sweep": report.comparison.sweep, "base_model": row.model, "configuration": row.configuration}
    model_version = tracker.client.create_model_version(
        name, source=f"runs:/{run.run_id}/export", run_id=run.run_id, tags=tags, description=card(report, row, run)
    )
    return f"models:/{name}/{model_version.version}"


def card(report: Report, row: Row, run: TrialRecord) -> str:
    """Return the model card as Markdown: base model, data, trial, settings, scores and a note on licences."""
    settings = ("r", "lora_alpha", "target_modules", "p_init", "interval", "learning_rate", "lora_dropout")
    data = {key: run.params.get(f"data.{key}", "") for key in ("source", "train_source")}
    lines = [
        f"# {method_label(OURS)} adapter of {report.comparison.suite}",
        "",
        f"- Base model: {row.model}",
        f"- Data: {', '.join(value for value in data.values() if value not in ('', 'null')) or 'not recorded'}",
        f"- Trial: {run.name} of sweep {run.sweep}, chosen by validation loss "
        f"({run.metrics.get(VALIDATION_LOSS, float('nan')):.4f}); test scores took no part",
        f"- Settings: {', '.join(f'{key}={run.params[key]}' for key in settings if key in run.params)}",
        "",
        "| task | accuracy (%) |",
        "|---|---:|",
    ]
    for task in (*report.comparison.tasks, "average"):
        score = run.metrics.get(f"eval/{task}")
        lines.append(f"| {task_label(task)} | {'-' if score is None else f'{100 * score:.1f}'} |")
    lines += [
        "",
        "Plain LoRA of uniform rank: PEFT and vLLM load it. The licences of the base model and of the training data",
        "hold for the adapter as well; look them up before you pass it on.",
    ]
    return "\n".join(lines)
