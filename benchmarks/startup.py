"""Where the time of a small sweep goes: `python benchmarks/startup.py`.

One trial of the shipped model (100 steps, 512 test questions) in a folder of its own, from the command to its end. The
times are those at which the sweep printed a line, Ray wrote its log, and the worker's metrics reached MLflow; the time
of the first step is that of a metric less the seconds that it says had been trained for. And --dry-run: the median of
--rounds, beside Python with torch alone and with transformers' automatic classes.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SWEEP = [sys.executable, "-u", str(ROOT / "pipelines" / "sweep.py"), "--suite", "commonsense", "--preset", "tiny"]
TRIAL = [
    "--methods", "beamlora", "--seeds", "0", "--no-probe", "--name", "measured", "--set", "training.max_steps=100",
    "--set", "evaluation.max_records=64",
]  # fmt: skip
NOTHING_ELSE = {
    "python": "pass",
    "python with torch": "import torch",
    "python with transformers' AutoTokenizer and AutoModelForCausalLM": (
        "from transformers import AutoModelForCausalLM, AutoTokenizer"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "transformers", "deepspeed", "mlflow"))
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {packages}\n")
    for name, code in NOTHING_ELSE.items():
        print(f"{median(arguments.rounds, [sys.executable, '-c', code]):6.2f} s  {name}")
    with tempfile.TemporaryDirectory() as folder:
        dry_run = [*SWEEP, "--dry-run"]
        first = median(1, dry_run, XDG_CACHE_HOME=folder)
        print(f"{first:6.2f} s  sweep.py --dry-run, the first of this model and its questions")
        print(f"{median(arguments.rounds, dry_run, XDG_CACHE_HOME=folder):6.2f} s  sweep.py --dry-run, again")
    with tempfile.TemporaryDirectory() as folder:
        moments = one_trial(Path(folder))
    print(f"\n{'at':>8} {'took':>8}")
    before = 0.0
    for name, moment in moments.items():
        print(f"{moment:6.1f} s {moment - before:6.1f} s  {name}")
        before = moment


def median(rounds: int, line: list[str], **environment: str) -> float:
    """Seconds of a command from its start to its end."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(line, check=True, env={**os.environ, **environment}, **silent)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def one_trial(folder: Path) -> dict[str, float]:
    """What was done -> seconds from the command to its end."""
    started = time.time()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    process = subprocess.Popen([*SWEEP, *TRIAL], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = [(time.time(), line) for line in process.stdout]
    if process.wait():
        sys.exit("".join(line for _, line in printed))
    ended = time.time()

    def at(part: str) -> float:
        return next(moment for moment, line in printed if part in line)

    log = (folder / "runs" / "measured" / "log.txt").read_text().splitlines()
    ray = next(line for line in log if "Started a local Ray instance" in line)
    ray_started = datetime.strptime(ray[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    first, last = trained(folder)
    moments = {
        "the input is read and checked, and the sweep is planned": at("Sweep measured:"),
        "Ray is there": ray_started,
        "a worker has begun with the first step: Tune, Train, imports, model, data, DeepSpeed": first,
        "100 steps with validation": last,
        "exported": at("trained "),
        "the model has answered 512 questions": at("evaluated "),
        "report, pictures, Ray stopped": ended,
    }
    return {name: moment - started for name, moment in moments.items()}


def trained(folder: Path) -> tuple[float, float]:
    """When the trial's first step began and its last one ended."""
    sys.path[:0] = [str(ROOT / "platform")]
    from mlflow import MlflowClient

    from beamplatform.metrics import SECONDS

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = [
        history
        for run in client.search_runs(experiments)
        if (history := client.get_metric_history(run.info.run_id, SECONDS))
    ]
    (history,) = found
    history.sort(key=lambda metric: metric.step)
    return (
        history[0].timestamp / 1000 - history[0].value,
        history[-1].timestamp / 1000,
    )


if __name__ == "__main__":
    main()
