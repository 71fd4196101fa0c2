"""A sweep as its user sees it: MLflow's own UI on it, in a real headless Chromium.

With BEAMLORA_SCREENSHOTS=FOLDER the pictures of the documentation are written there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow.tracking import MlflowClient
from serving import free_port, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def runs(swept) -> tuple[str, str, dict[str, str]]:
    """The experiment, the sweep's own run, and method -> the run of its trial."""
    folder, _ = swept
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("commonsense").experiment_id
    found = client.search_runs([experiment])
    (parent,) = [run.info.run_id for run in found if "mlflow.parentRunId" not in run.data.tags]
    return experiment, parent, {r.data.tags["method"]: r.info.run_id for r in found if "method" in r.data.tags}


@pytest.fixture(scope="module")
def ui(swept) -> Iterator[str]:
    """`mlflow ui` as the sweep says to start it, on a free port."""
    folder, _ = swept
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command = [sys.executable, "-m", "mlflow", "ui", *store, "--port", str(port), "--workers", "1"]
    log = (folder / "ui.txt").open("w")
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "ui.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        log.close()


Visit = Callable[[str, str], Any]


@pytest.fixture
def visit(ui: str, tmp_path: Path) -> Iterator[Visit]:
    """Goes to a page of the UI and waits for a text on it; the page and a picture of it."""
    from playwright.sync_api import sync_playwright

    pictures = Path(os.environ.get("BEAMLORA_SCREENSHOTS", tmp_path))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 800})

        def go(path: str, text: str, name: str = "") -> Any:
            page.goto("about:blank")
            page.goto(f"{ui}/#{path}")
            page.wait_for_function("text => document.body.innerText.includes(text)", arg=text, timeout=120_000)
            page.wait_for_timeout(2000)  # for what is drawn after the text
            if name:
                page.screenshot(path=str(pictures / f"{name}.png"))
            return page

        yield go
        browser.close()


BEST_FIRST = f"orderByKey={quote('metrics.`eval/average`')}&orderByAsc=false"
"""Sorted by anything but their age, MLflow lists trials by themselves and not folded up below their sweep."""


def test_the_sweep_is_listed_with_its_trials_below_it(visit: Visit, runs) -> None:
    experiment, _, trials = runs
    page = visit(f"/experiments/{experiment}/runs", f"{1 + len(trials)} matching runs")
    text = page.inner_text("body")
    assert "first" in text.splitlines() and "dora-" not in text, "trials are folded up below their sweep"
    page = visit(f"/experiments/{experiment}/runs?{BEST_FIRST}", "dora-")
    assert "beamlora-" in page.inner_text("body")


def test_filtering_by_method(visit: Visit, runs) -> None:
    experiment, *_ = runs
    where = quote("tags.method = 'dora'")
    page = visit(f"/experiments/{experiment}/runs?searchFilter={where}&{BEST_FIRST}", "dora-")
    assert "beamlora-" not in page.inner_text("body")


@pytest.mark.parametrize("ascending", [True, False])
def test_sorting_by_the_average(visit: Visit, runs, swept, ascending: bool) -> None:
    experiment, _, trials = runs
    folder, _ = swept
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    scores = {method: client.get_run(run).data.metrics["eval/average"] for method, run in trials.items()}
    where, by = quote("tags.method != ''"), quote("metrics.`eval/average`")
    order = f"orderByKey={by}&orderByAsc={str(ascending).lower()}"
    page = visit(f"/experiments/{experiment}/runs?searchFilter={where}&{order}", "dora-", "" if ascending else "runs")
    text = page.inner_text("body")
    shown = sorted(trials, key=lambda method: text.index(f"{method}-"))
    assert [scores[method] for method in shown] == sorted(scores.values(), reverse=not ascending)


def test_two_trials_are_compared_by_parameters_and_metrics(visit: Visit, runs) -> None:
    experiment, _, trials = runs
    both = quote(json.dumps(list(trials.values())))
    page = visit(
        f"/compare-runs?runs={both}&experiments={quote(json.dumps([experiment]))}", "Show diff only", "compare"
    )
    text = page.inner_text("body")
    for word in ("learning_rate", "eval/average", "Parameters", "Metrics", "Parallel Coordinates Plot"):
        assert word in text, word


def test_the_curves_of_a_trial_are_drawn(visit: Visit, runs) -> None:
    experiment, _, trials = runs
    page = visit(f"/experiments/{experiment}/runs/{trials['beamlora']}/model-metrics", "train")
    page.locator(".js-plotly-plot").first.wait_for(timeout=120_000)


def test_the_report_is_shown_among_the_artifacts(visit: Visit, runs) -> None:
    experiment, parent, _ = runs
    page = visit(
        f"/experiments/{experiment}/runs/{parent}/artifacts/comparison/comparison.html", "comparison.html", "report"
    )
    page.frame_locator("iframe").get_by_text("BeamLoRA against each").wait_for(timeout=120_000)
    report = next(frame for frame in page.frames if frame.url.startswith("blob:"))
    text = report.inner_text("body")
    assert "BeamLoRA against each" in text and "Which rank replaced which" in text
    assert report.locator("svg").count() >= 3
