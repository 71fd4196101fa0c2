"""The stage "evaluate": real actors on a real Ray, models of different kinds, and actors that are lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from engines import needs_vllm
from tiny_adapters import two_adapters_and_a_merged_model

from beamplatform.data.records import load_records
from beamplatform.evaluation.evaluator import Evaluator, evaluator_actor
from beamplatform.evaluation.scores import Evaluation
from beamplatform.inference import Export
from beamplatform.sweep.run import Cluster
from beamplatform.sweep.trials.evaluate_stage import EvaluationStage

TASKS = ("boolq", "piqa")
QUESTIONS = 40


class Told:
    """Everything the stage says, in its order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, Any]] = []
        self.on_evaluating: Any = lambda index, answered: None

    def evaluating(self, index: int, answered: int) -> None:
        self.events.append(("evaluating", index, answered))
        self.on_evaluating(index, answered)

    def evaluated(self, index: int, result: Evaluation) -> None:
        self.events.append(("evaluated", index, result))

    def unanswered(self, index: int, why: str) -> None:
        self.events.append(("failed", index, why))

    def order(self) -> list[int]:
        return [index for what, index, _ in self.events if what == "evaluated"]

    def results(self) -> dict[int, Evaluation]:
        return {index: result for what, index, result in self.events if what == "evaluated"}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Export]:
    """A merged model, two adapters, and a folder that holds nothing."""
    folder = tmp_path_factory.mktemp("exports")
    adapters, merged = two_adapters_and_a_merged_model(folder)
    paths = [*adapters, folder / "nothing"]
    return [Export("merged", str(merged)), *(Export("adapter", str(path)) for path in paths)]


@pytest.fixture(scope="module")
def cluster(forked_ray: None) -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def options(trial, tmp_path: Path) -> dict[str, Any]:
    """The arguments of an Evaluator whose questions take some seconds, one by one."""
    section = trial("lora").evaluation.model_copy(update={"tasks": TASKS, "batch_size": 2})
    records = {task: load_records(task, "test", "embedded")[: QUESTIONS // 2] for task in TASKS}
    store = str(tmp_path / "answers")
    model = trial("lora").model
    return {"model": model, "section": section, "records": records, "adapters": 2, "largest_rank": 4, "store": store}


def stage_of(exports: list[Export], told: Told, options: dict[str, Any], *, beside_training: bool) -> EvaluationStage:
    return EvaluationStage(
        exports, told, lambda: evaluator_actor(**options, cpus=1, use_gpu=False), beside_training=beside_training
    )


def answers(options: dict[str, Any]) -> list[str]:
    return [line for file in Path(options["store"]).glob("*/*.jsonl") for line in file.read_text().splitlines()]


def test_adapters_are_asked_together_and_merged_models_after_them(cluster, exports, options) -> None:
    told = Told()
    made: list[Any] = []

    def actor() -> Any:
        made.append(evaluator_actor(**options, cpus=1, use_gpu=False))
        return made[-1]

    stage = EvaluationStage(exports, told, actor, beside_training=False)
    for index in range(4):
        stage.add(index)
    assert not made, "nothing is asked before the training ends"
    failed = stage.finish()
    assert list(failed) == [3] and failed[3].startswith("no adapter folder at")
    assert len(made) == 1
    assert sorted(told.order()[:2]) == [1, 2] and told.order()[2] == 0
    first = [event[1] for event in told.events if event[0] == "evaluating"]
    assert first[:3] == [1, 2, 3], "asked in one go"
    alone = Evaluator(**{**options, "store": None})
    for index, result in told.results().items():
        (outcome,) = (event.outcome for event in alone.stream([exports[index]]) if event.outcome)
        assert outcome == result
    counts = [answered for what, index, answered in told.events if what == "evaluating" and index == 0]
    assert counts == sorted(counts) and counts[-1] <= QUESTIONS


@needs_vllm
def test_vllm_in_an_actor_serves_adapters_together_and_then_the_merged_model(cluster, exports, options) -> None:
    told = Told()
    served = {**options, "section": options["section"].model_copy(update={"engine": "vllm"})}
    stage = stage_of(exports, told, served, beside_training=False)
    for index in (0, 1, 2):
        stage.add(index)
    assert stage.finish() == {}
    assert sorted(told.order()[:2]) == [1, 2] and told.order()[2] == 0
    alone = Evaluator(**{**options, "store": None})  # transformers
    for index, result in told.results().items():
        (outcome,) = (event.outcome for event in alone.stream([exports[index]]) if event.outcome)
        assert outcome == result
    abouts = [json.loads(path.read_text()) for path in Path(options["store"]).glob("*/about.json")]
    assert len(abouts) == 3 and all(about["engine"].startswith("vllm") for about in abouts)


def test_a_lost_actor_is_replaced_and_asks_no_question_again(cluster, exports, options) -> None:
    told = Told()
    actors: list[Any] = []

    def actor() -> Any:
        actors.append(evaluator_actor(**options, cpus=1, use_gpu=False))
        return actors[-1]

    def kill_once(index: int, answered: int) -> None:
        if answered and len(actors) == 1:
            ray.kill(actors[0])

    told.on_evaluating = kill_once
    stage = EvaluationStage(exports, told, actor, beside_training=False)
    for index in (0, 1):
        stage.add(index)
    assert stage.finish() == {}
    assert len(actors) == 2 and sorted(told.order()) == [0, 1]
    found = answers(options)
    assert len(found) == 2 * QUESTIONS
    alone = Evaluator(**{**options, "store": None})
    (outcome,) = (event.outcome for event in alone.stream([exports[1]]) if event.outcome)
    assert told.results()[1] == outcome


def test_an_actor_that_never_comes_up_fails_the_trials_and_ends(cluster, exports, options) -> None:
    told = Told()
    broken = {**options, "section": options["section"].model_copy(update={"tasks": ("nothing",)})}
    stage = stage_of(exports, told, broken, beside_training=False)
    stage.add(1)
    stage.add(2)
    failed = stage.finish()
    assert sorted(failed) == [1, 2] and "unknown task 'nothing'" in failed[1]
    assert told.order() == []


def test_beside_training_each_model_is_asked_when_it_comes(cluster, exports, options) -> None:
    told, asked = Told(), threading.Event()
    told.on_evaluating = lambda index, answered: asked.set()
    stage = stage_of(exports, told, options, beside_training=True)
    stage.add(1)
    assert asked.wait(60), "before anyone calls finish"
    deadline = time.monotonic() + 600
    while told.order() != [1] and time.monotonic() < deadline:
        time.sleep(0.1)
    stage.add(2)
    assert stage.finish() == {} and told.order() == [1, 2]


def test_an_abandoned_stage_tells_nobody_and_ends(cluster, exports, options) -> None:
    told, asked = Told(), threading.Event()
    told.on_evaluating = lambda index, answered: answered and asked.set()
    stage = stage_of(exports, told, options, beside_training=True)
    stage.add(1)
    assert asked.wait(60)
    stage.abandon()
    stage._thread.join(30)
    assert not stage._thread.is_alive()
    assert told.order() == [] and not any(what == "failed" for what, *_ in told.events)


def test_what_is_spare_is_what_trials_leave(trial) -> None:
    pair = trial("lora", training__workers=2, training__micro_batch=8).training
    assert Cluster(8, 0, 8).spare(pair, 4) == 0
    assert Cluster(8, 0, 8).spare(pair, 3) == 2
    assert Cluster(64, 4, 8).spare(pair, 2) == 0 and Cluster(64, 4, 8).spare(pair, 1) == 2
    on_gpus = pair.model_copy(update={"device": "gpu"})
    assert Cluster(8, 0, 8).spare(on_gpus, 3) == 0, "an autoscaling cluster shows no GPU yet"
