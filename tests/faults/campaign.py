"""The whole campaign of faults: `python tests/faults/campaign.py [--workers 20] [--drivers 10] [--seed 0]`.

Workers: so many copies of one BeamLoRA trial (two workers, ZeRO 2), in each of which one worker is killed with SIGKILL
at a random step, some of them in a beam step or while a checkpoint is written. Drivers: so many sweeps of two methods
whose driver is killed with SIGKILL at a random time and resumed with `--resume`. Every one must end by itself, with the
very same weights as the run that nothing happened to, and with each step of each metric once in MLflow. Prints what it
saw; exit code 1 where something differs. A few of these run in CI (test_faults.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "helpers"), str(Path(__file__).parent)]

STEPS, CHECKPOINT, BEAM_STEPS = 40, 5, (8, 16, 24)
SETTING: dict[str, Any] = {
    "training__max_steps": STEPS,
    "training__checkpoint_every": CHECKPOINT,
    "training__log_every": 4,
    "training__workers": 2,
    "training__micro_batch": 8,
    "training__zero_stage": 2,
    "shared__lora_dropout": 0.1,
    "data__validation_records": 16,
    "methods__beamlora__interval": 8,
    "methods__beamlora__operate_until": 1.0,
}


def kill_points(count: int, seed: int) -> list[tuple[str, int, int]]:
    """(moment, step, worker): a quarter each in a beam step and in a checkpoint, the rest at any step."""
    draw = random.Random(f"kill points {seed}")
    moments = ["beam", "checkpoint", "step", "step"]
    steps = {"beam": BEAM_STEPS, "checkpoint": range(CHECKPOINT, STEPS, CHECKPOINT), "step": range(1, STEPS + 1)}
    return [
        (moment, draw.choice(steps[moment]), draw.randrange(2)) for moment in (moments[i % 4] for i in range(count))
    ]


def weights(export: Path) -> bytes:
    return (export / "adapter_model.safetensors").read_bytes()


def doubled(store: str, run_id: str) -> list[str]:
    """The metrics of a run that have a step more than once."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    names = client.get_run(run_id).data.metrics
    steps = {name: Counter(point.step for point in client.get_metric_history(run_id, name)) for name in names}
    return [name for name, found in steps.items() if max(found.values()) > 1]


def logged(store: str, run_id: str) -> set[tuple[str, int]]:
    from beamplatform.tracking import Tracker

    return Tracker(store).logged(run_id)


def kill_workers(points: list[tuple[str, int, int]], folder: Path) -> list[str]:
    """Run the trial once undisturbed and once for each point; returns what was wrong."""
    import ray
    from conftest import make_trial, train_under_ray
    from worker_faults import fault_hook

    from beamplatform.tracking import Tracker
    from beamplatform.tracking.runs import TRIAL_TAGS
    from beamplatform.tracking.writer import MlflowWriter
    from beamplatform.training.worker import Destination

    trial = make_trial("beamlora", **SETTING)
    destinations = [Destination(str(folder / str(i) / "export"), str(folder / "train")) for i in range(len(points) + 1)]
    faults = folder / "faults.json"
    faults.write_text(json.dumps({d.checkpoints: list(p) for d, p in zip(destinations[1:], points, strict=True)}))
    store = f"sqlite:///{folder}/mlflow.db"
    tracker = Tracker(store, "faults")
    tracker.prepare()
    parent = tracker.start_sweep("faults", {}, {})
    trials = [trial] * len(destinations)
    run_ids = [tracker.start_trial(parent, f"{i}", {}, dict.fromkeys(TRIAL_TAGS, "0")) for i in range(len(trials))]
    ray.init(
        address="local", num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", log_to_driver=False,
        runtime_env={"worker_process_setup_hook": fault_hook(faults)},
    )  # fmt: skip
    try:
        with MlflowWriter(tracker, run_ids) as recorder:
            names = [str(index) for index in range(len(trials))]
            outcome = train_under_ray(trials, folder, recorder, names, concurrent=1)
    finally:
        ray.shutdown()
    wrong = [f"trial {index} failed: {why}" for index, why in outcome.failed.items()]
    killed = [path for path in folder.glob("killed-*") if not path.suffix]
    if len(killed) != len(points):
        wrong.append(f"{len(killed)} of {len(points)} workers were killed")
    for path in killed:
        moment, step, _ = json.loads(path.read_text())
        # The checkpoint of the step itself is not complete at any of the moments.
        last, found = (step - 1) // CHECKPOINT * CHECKPOINT, int(path.with_suffix(".resumed").read_text())
        if found != last:
            wrong.append(f"killed at step {step} ({moment}): went on from step {found}, not from {last}")
    expected = logged(store, run_ids[0])
    for index in range(len(trials)):
        if index in outcome.failed:
            continue
        if weights(Path(destinations[index].export)) != weights(Path(destinations[0].export)):
            wrong.append(f"trial {index} {points[index - 1]}: other weights")
        if twice := doubled(store, run_ids[index]):
            wrong.append(f"trial {index} {points[index - 1]}: steps twice in {', '.join(twice)}")
        if logged(store, run_ids[index]) != expected:
            wrong.append(f"trial {index} {points[index - 1]}: other steps in MLflow")
    return wrong


SWEPT = [
    "--preset", "tiny", "--methods", "beamlora,lora", "--seeds", "0", "--name", "s", "--no-probe",
    "--set", f"training.max_steps={STEPS}", "--set", f"training.checkpoint_every={CHECKPOINT}",
    "--set", "training.log_every=4", "--set", "evaluation.max_records=8", "--set", "data.validation_records=16",
]  # fmt: skip


def run_sweep(arguments: list[str], folder: Path, kill_after: float | None = None) -> tuple[int, float, str]:
    """Exit code (-9 when it was killed), seconds and output of one driver in `folder`."""
    import forked

    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    started = time.monotonic()
    script, output = ROOT / "pipelines" / "sweep.py", folder / "output.txt"
    line = ["--suite", "commonsense", *arguments]
    process = forked.Program(script, line, stdout=output, stderr=output, folder=folder, environment=environment)
    try:
        code = process.wait(kill_after if kill_after is not None else 900)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait(60)
    return code, time.monotonic() - started, output.read_text()


def kill_drivers(moments: list[float], folder: Path) -> list[str]:
    """One sweep undisturbed, and one for each moment, a share of that one's time; returns what was wrong."""
    whole = folder / "whole"
    whole.mkdir()
    code, seconds, output = run_sweep(SWEPT, whole)
    if code:
        return [f"the undisturbed sweep ended with {code}: {output[-2000:]}"]
    expected = swept(whole)
    wrong = []
    for number, moment in enumerate(moments):
        place = folder / f"killed-{number}"
        place.mkdir()
        code, _, _ = run_sweep(SWEPT, place, kill_after=moment * seconds)
        started = (place / "runs" / "s" / "sweep.json").exists()
        before = exported(place)
        again = ["--resume"] if started else SWEPT
        if not started and (place / "runs" / "s").exists():
            subprocess.run(["rm", "-r", str(place / "runs")], check=True)
        ended, _, output = run_sweep(again, place)
        print(
            f"  driver killed after {moment * seconds:5.1f} s of {seconds:.1f} s (code {code}), resumed: code {ended}",
            flush=True,
        )
        if ended:
            wrong.append(f"killed at {moment:.2f}: resumed sweep ended with {ended}: {output[-2000:]}")
            continue
        found = swept(place)
        if started and {name: exported(place).get(name) for name in before} != before:
            wrong.append(f"killed at {moment:.2f}: a trial that had been trained was trained again")
        for name in expected.keys() | found.keys():
            if found.get(name) != expected.get(name):
                differing = [
                    i
                    for i, (a, b) in enumerate(zip(found.get(name, ()), expected.get(name, ()), strict=False))
                    if a != b
                ]
                wrong.append(f"killed at {moment:.2f}: {name} differs in {differing}")
    return wrong


def exported(folder: Path) -> dict[str, int]:
    """When each trial that is trained was exported."""
    return {file.parts[-3]: file.stat().st_mtime_ns for file in folder.glob("runs/s/trials/*/export/trial.json")}


def swept(folder: Path) -> dict[str, Any]:
    """Of each trial: status, how many runs it has, weights, its steps in MLflow, those there twice, scores."""
    from beamplatform.tracking import Tracker

    store = f"sqlite:///{folder}/mlflow.db"
    tracker = Tracker(store, "commonsense")
    runs = tracker.trial_runs(sweep="s", every_status=True)
    count = Counter(run.name for run in runs)
    return {
        run.name: (
            run.status,
            count[run.name],
            weights(folder / "runs" / "s" / "trials" / run.name / "export"),
            tracker.logged(run.run_id),
            doubled(store, run.run_id),
            {name: value for name, value in run.metrics.items() if name.startswith("eval/")},
        )
        for run in runs
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--workers", type=int, default=20, help="trials in which a worker is killed")
    parser.add_argument("--drivers", type=int, default=10, help="sweeps whose driver is killed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong = []
    with tempfile.TemporaryDirectory(prefix="beamplatform-faults-") as name:
        if options.workers:
            points = kill_points(options.workers, options.seed)
            started = time.monotonic()
            folder = Path(name) / "workers"
            folder.mkdir()
            found = kill_workers(points, folder)
            moments = ", ".join(f"{n} {moment}" for moment, n in Counter(point[0] for point in points).items())
            print(
                f"workers killed: {len(points)} ({moments}), {len(found)} wrong, {time.monotonic() - started:.0f} s",
                flush=True,
            )
            wrong += found
        if options.drivers:
            draw = random.Random(f"drivers {options.seed}")
            started = time.monotonic()
            folder = Path(name) / "drivers"
            folder.mkdir()
            # Before a third of the time the sweep checks its plan and starts Ray: one kill there, the others after it.
            found = kill_drivers(
                [draw.uniform(0.05, 0.3)] + [draw.uniform(0.3, 1) for _ in range(options.drivers - 1)], folder
            )
            print(
                f"drivers killed: {options.drivers}, {len(found)} wrong, {time.monotonic() - started:.0f} s", flush=True
            )
            wrong += found
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
