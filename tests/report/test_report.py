"""The whole report from a real MLflow store: what a sweep left there, read by a machine that never saw it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from beamplatform.errors import UserError
from beamplatform.evaluation.predictions import Prediction, rows, write_predictions
from beamplatform.report.beam import draw_beam, replacements
from beamplatform.report.comparison import compare
from beamplatform.report.costs import front
from beamplatform.report.files import Report, make_report
from beamplatform.report.published import published
from beamplatform.report.render import to_latex, to_markdown
from beamplatform.report.searched import searched
from beamplatform.tracking import Tracker

TASKS = ("boolq", "piqa")
QUESTIONS = 150
ACCURACY = {"beamlora": 0.9, "lora": 0.6, "dora": 0.88}
BEAM = [
    {
        "step": step,
        "threshold": 0.9 + step / 1000,
        "operated": {"model.layers.0.self_attn.q_proj": [[3, 0]], "model.layers.1.mlp.up_proj": [[1, 2], [3, 0]]},
        "scores": {
            name: [0.3, 0.2, 0.3, 0.2] for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")
        },
    }
    for step in (10, 20, 30)
]


def predictions(method: str, seed: int, task: str, asked: int = QUESTIONS) -> list[Prediction]:
    draws = random.Random(f"{method}{seed}{task}")
    return [Prediction(f"{task}{n}", "p", "c", "true", "true", draws.random() < ACCURACY[method]) for n in range(asked)]


def record(
    tracker: Tracker, folder: Path, method: str, seed: int, parent: str, asked: int = QUESTIONS, **params: object
) -> None:
    """One finished trial, as a sweep records it."""
    configuration = json.dumps(params, sort_keys=True)
    run = tracker.start_trial(
        parent,
        f"{method}-{configuration}-seed{seed}",
        {"method": method, "seed": seed, "r": 32, "model.path": "meta-llama/Llama-2-7b-hf", **params},
        {"method": method, "seed": seed, "sweep": "s", "stage": "done", "preset": "p", "configuration": configuration,
         "note/piqa": "a variant"},
    )  # fmt: skip
    slower = {"beamlora": 1.0, "lora": 1.0, "dora": 1.7}[method]
    steps = [(step, {"train/loss": 2.0 / step, "train/seconds": slower * step}) for step in range(1, 31)]
    loss = abs(float(params.get("p_init", 0.95)) - 0.95) + 1.0
    scores = {task: predictions(method, seed, task, asked) for task in TASKS}
    shares = {f"eval/{task}": sum(p.correct for p in found) / len(found) for task, found in scores.items()}
    last = {"validation/loss": loss, "train/peak_memory_bytes": 1e9 * slower, "train/trainable_parameters": 1000.0}
    if method == "beamlora":
        last["beam/operated_ranks"] = 3.0
    average = sum(shares.values()) / len(shares)
    tracker.log_metrics(run, [*steps, (30, last), (0, {**shares, "eval/average": average})])
    place = folder / f"{method}{seed}{abs(hash(configuration))}"
    place.mkdir()
    for task, found in scores.items():
        write_predictions(found, place / f"{task}.parquet")
        tracker.log_table(run, rows(found), f"predictions/{task}.json")
    tracker.log_folder(run, place, "predictions")
    if method == "beamlora":
        (place / "beam.json").write_text(json.dumps(BEAM))
        tracker.log_folder(run, place, "export")
    tracker.finish(run, "FINISHED")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "commonsense")
    tracker.prepare()
    parent = tracker.start_sweep("s", {}, {"command_line": "sweep.py <x>", "mlflow.source.git.commit": "abc123"})
    for seed in (0, 1):
        record(tracker, folder, "lora", seed, parent)
        record(tracker, folder, "dora", seed, parent)
        for p_init, interval in ((0.95, 10), (0.9, 20), (0.98, 30)):
            record(tracker, folder, "beamlora", seed, parent, p_init=p_init, interval=interval)
    tracker.finish(parent, "FINISHED")
    return tracker.uri


@pytest.fixture
def report(store: str) -> Report:
    tracker = Tracker(store, "commonsense")
    return make_report(tracker, tracker.trial_runs(every_status=True))


def test_differences_come_from_the_stored_predictions(report: Report) -> None:
    lora, dora = report.comparison.differences
    assert (lora.method, lora.baseline, dora.baseline) == ("beamlora", "lora", "dora")
    assert 0.2 < lora.difference < 0.4 and not lora.is_noise and dora.is_noise
    assert lora.questions == 2 * QUESTIONS and lora.seeds == (2, 2)
    means = {row.method: row.average.mean for row in report.comparison.rows if row.average}
    assert lora.difference == pytest.approx(means["beamlora"] - means["lora"])


def test_everything_is_written_and_the_page_needs_nothing_else(report: Report, tmp_path: Path) -> None:
    paths = report.write(tmp_path / "out")
    names = {path.name for path in paths}
    pictures = {"comparison", "costs", "curves", "beam", "effects", "search-beamlora"}
    assert names == {f"comparison.{end}" for end in ("html", "md", "tex", "csv")} | {
        f"{name}.{end}" for name in pictures for end in ("png", "svg")
    }
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<svg") == 6 and "http://" not in page.replace("http://www.w3.org", "") and "src=" not in page
    for text in ("noise", "better", "PIQA †: a variant", "sweep.py &lt;x&gt;", "abc123", "3 ← 0", "[71.6]"):
        assert text in page, text
    ids = [part.partition('"')[0] for part in page.split(' id="')[1:]]
    assert {name.partition("-")[0] for name in ids} == {f"p{n}" for n in range(6)}, "pictures must not share ids"
    again = report.write(tmp_path / "again")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def test_time_and_memory_are_relative_to_lora(report: Report) -> None:
    text = to_markdown(report.comparison)
    dora = next(line for line in text.splitlines() if line.startswith("| DoRA") and "1,000" in line)
    assert "| 1.70 | 1.70 |" in dora
    assert "trained at a time" in text and "relative to LoRA" in text


def test_latex_compiles_as_far_as_braces_go(report: Report) -> None:
    text = to_latex(report.comparison)
    assert text.count("{") == text.count("}") and text.count(r"\begin{table}") == 3
    assert r"\textbf{" in text and r"95 \% interval" in text and r"PIQA $\dagger$" in text


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "commonsense")
    tracker.prepare()
    parent = tracker.start_sweep("s", {}, {})
    record(tracker, tmp_path, "beamlora", 0, parent)
    record(tracker, tmp_path, "lora", 0, parent, asked=QUESTIONS - 1)
    found = make_report(tracker, tracker.trial_runs(every_status=True)).comparison
    assert found.differences == () and any("other questions" in sentence for sentence in found.uneven)


def test_nothing_finished_is_one_line(tmp_path: Path) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "commonsense")
    tracker.prepare()
    parent = tracker.start_sweep("s", {}, {})
    run = tracker.start_trial(
        parent, "t", {}, {"method": "lora", "seed": 0, "sweep": "s", "stage": "x", "preset": "p", "configuration": "c"}
    )
    tracker.finish(run, "FAILED")
    with pytest.raises(UserError, match="no finished trial with scores to compare: 1 FAILED"):
        make_report(tracker, tracker.trial_runs(every_status=True))


def test_one_method_is_shown_without_a_comparison(tmp_path: Path) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "commonsense")
    tracker.prepare()
    record(tracker, tmp_path, "lora", 0, tracker.start_sweep("s", {}, {}))
    found = make_report(tracker, tracker.trial_runs(every_status=True))
    assert found.comparison.differences == ()
    assert (tmp_path / "out" / "comparison.html") in found.write(tmp_path / "out")


def test_what_was_searched(report: Report) -> None:
    found = searched(report.runs)
    assert {method: sorted(names) for method, names in found.items()} == {"beamlora": ["interval", "p_init"]}
    assert len(found["beamlora"]["p_init"]) == 6
    assert compare(report.runs).rows[-1].settings["p_init"] == "0.95"


def test_published_values_are_those_of_the_same_model_and_rank() -> None:
    assert published("meta-llama/Llama-2-7b-hf", "lora", "32")["boolq"] == pytest.approx(0.698)
    assert published("/models/Llama-2-7b-hf/", "beamlora", "64")["humaneval"] == pytest.approx(0.439)
    assert published("mistralai/Mistral-7B-v0.1", "full", None)["gsm8k"] == pytest.approx(0.777)
    for other in (("meta-llama/Llama-2-7b-chat-hf", "lora", "32"), ("tiny", "lora", "8"), ("Llama-2-7b", "lora", "16")):
        assert published(*other) == {}


def test_the_front_holds_what_nothing_beats() -> None:
    assert front([(1, 5), (2, 4), (2, 6), (3, 6), (0.5, 1), (1, 7)]) == [4, 5]
    assert front([]) == []


def test_replacements_read_as_pruned_from_parent() -> None:
    assert replacements(BEAM[:1]) == [
        (10, "model.layers.0.self_attn.q_proj", "3 ← 0"),
        (10, "model.layers.1.mlp.up_proj", "1 ← 2, 3 ← 0"),
    ]
    assert draw_beam([]) is None
