"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked_workers
import hypothesis
import pytest
from forked import Program
from serving import free_port

from beamplatform.config.suite import Override, load_preset
from beamplatform.config.trial import Trial
from beamplatform.config.trial import make_trial as trial_at

ROOT = Path(__file__).resolve().parent.parent

# Side by side, each process computes on one core: else threads wait for each other while other processes have the
# cores, and most of the time goes there. Read when torch is imported, here and in the programs that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

forked_workers.prepare()

# A property holds or not, however long an example takes: on a busy machine one takes a hundred times what another does.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# Ray starts workers with a lower priority (nice 15): beside other tests they would hardly come to their turn.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  the name that Ray reads


@pytest.fixture(scope="module", autouse=True)
def own_environment() -> Iterator[None]:
    """What a file's tests leave in the environment, as `ray.init` in a test's own process does, ends with the file.

    Programs of later tests would inherit it, and could not be forked: see `forked`.
    """
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real test sets (layout of LLM-Adapters), where this machine has them."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the published test sets are not at {folder}")
    return folder


def make_trial(method: str, **changes: Any) -> Trial:
    """The first trial of the tiny preset for `method`; changes are dotted keys with __ for the dots."""
    overrides = [Override(key, key.replace("__", "."), json.dumps(value)) for key, value in changes.items()]
    suite, name, preset = load_preset(
        ROOT / "tune_spaces" / "commonsense.yaml", "tiny", has_gpu=False, overrides=overrides
    )
    space = preset.space(method)
    return trial_at(suite.name, name, preset, method, space.resolve(next(space.random(0))), preset.search.seeds[0])


@dataclass(frozen=True)
class Trained:
    """What `tests/training/one_worker.py` left behind."""

    folder: Path
    trial: Trial
    rows: list[tuple[int, dict[str, float]]]
    final: Mapping[str, Any]
    output: str

    def series(self, metric: str) -> list[float]:
        return [row[metric] for _, row in self.rows if metric in row]


def run_workers(script: str, spec: Mapping[str, Any], workers: int, folder: Path) -> str:
    """Run `tests/training/SCRIPT SPEC RANK WORLD PORT` in as many processes; returns what they printed."""
    (folder / "spec.json").write_text(json.dumps(spec))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    port = free_port()
    logs = [folder / f"output-{rank}.txt" for rank in range(workers)]
    programs: list[Program] = []
    try:
        for rank, log in enumerate(logs):
            line = (folder / "spec.json", rank, workers, port)
            program = Program(
                ROOT / "tests" / "training" / script, line, stdout=log, stderr=log, environment=environment
            )
            programs.append(program)
        for program in programs:
            program.wait(timeout=900)
    finally:
        for program in programs:  # one that died leaves the others waiting for it
            program.kill()
    output = "\n".join(path.read_text() for path in logs)
    assert all(program.returncode == 0 for program in programs), output[-4000:]
    return output


@pytest.fixture(scope="session")
def workers() -> Callable[..., str]:
    """`run_workers` as a fixture."""
    return run_workers


@pytest.fixture
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Train a trial in real worker processes (gloo, DeepSpeed), without Ray."""

    def run(trial: Trial, checkpoints: Path | None = None) -> Trained:
        import torch

        folder = tmp_path_factory.mktemp("train")
        spec = {
            "trial": trial.model_dump(),
            "folder": str(folder),
            "checkpoints": checkpoints and str(checkpoints),
        }
        output = run_workers("one_worker.py", spec, trial.training.workers, folder)
        rows = [(step, row) for step, row in json.loads((folder / "rows.json").read_text())]
        return Trained(folder, trial, rows, torch.load(folder / "final.pt", weights_only=True), output)

    return run


@pytest.fixture(scope="module")
def forked_ray() -> Iterator[None]:
    """Ray's workers need not import all libraries anew; not for tests that look at processes, memory or mounts."""
    with forked_workers.use():
        yield


@dataclass
class Outcome:
    """What became of trials that were trained without a sweep around them: index -> why."""

    failed: dict[int, str] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)
    trained: list[int] = field(default_factory=list)


def train_under_ray(
    trials: Sequence[Trial], folder: Path, recorder: Any, names: Sequence[str] = (), **options: Any
) -> Outcome:
    """`train_trials` on the Ray that is running, each trial in a folder of its name (or of `names`)."""
    from listed import Listed

    from beamplatform.sweep.trials.train_stage import Job, Listener, train_trials
    from beamplatform.training.worker import Destination

    outcome = Outcome()

    class Told(Listener):
        def reported(self, index: int, step: int, total_steps: int, loss: float | None, rows: Any) -> None:
            recorder.add(index, rows)

        def trained(self, index: int) -> None:
            outcome.trained.append(index)

        def stopped(self, index: int, why: str) -> None:
            outcome.stopped[index] = why

        def failed(self, index: int, why: str) -> None:
            outcome.failed[index] = why

    names = names or [trial.name for trial in trials]
    destinations = [Destination(str(folder / name / "export"), str(folder / "train")) for name in names]
    jobs = Listed([Job(index, *pair) for index, pair in enumerate(zip(trials, destinations, strict=True))])
    train_trials(jobs, Told(), storage=str(folder), use_gpu=False, **options)
    return outcome


@pytest.fixture(scope="session")
def trained_under_ray() -> Callable[..., Outcome]:
    """`train_under_ray` as a fixture."""
    return train_under_ray


@pytest.fixture(scope="session")
def trial() -> Callable[..., Trial]:
    """`make_trial` as a fixture: trials of the tiny preset."""
    return make_trial


SIDE_BY_SIDE = {
    "test_sweep.py": "sweep",  # the files that look at one sweep
    "test_ui.py": "sweep",
}
FIRST = (
    "battery",
    "sweep",
    "test_deepspeed",
    "test_training",
    "faults",
    "test_stopping",
    "test_two_stages",
    "test_evaluate",
    "test_loading",
)
"""Groups that take longest: begun last, they would leave the other processes idle."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-xdist runs the tests of one group in one process: those of a file, which share fixtures, or as marked."""
    places: dict[str, int] = {}
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        # One after the other: those of a cluster look at the autoscaler's process, of which this machine has one.
        own = "cluster" if item.path.parent.name == "cluster" else SIDE_BY_SIDE.get(item.path.name, item.path.stem)
        group = mark.args[0] if mark else own
        if mark is None:
            item.add_marker(pytest.mark.xdist_group(group))
        first = next((number for number, name in enumerate(FIRST) if group.startswith(name)), len(FIRST))
        places[item.nodeid] = first
    items.sort(key=lambda item: places[item.nodeid])  # stable: otherwise in the order of files


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With BEAMLORA_REQUIRE_VLLM=1, which CI sets, a test that skips because vLLM is absent fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("BEAMLORA_REQUIRE_VLLM") != "1" or reporter is None:
        return
    reasons = [str(report.longrepr[-1]) for report in reporter.stats.get("skipped", [])]
    missing = [reason for reason in reasons if "vllm" in reason.lower()]
    if missing:
        reporter.write_line(f"\nBEAMLORA_REQUIRE_VLLM=1, and {len(missing)} tests skipped: {missing[0]}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
