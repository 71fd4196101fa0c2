"""Stage "evaluate": one engine in a Ray actor answers every task with every trial's exported model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from beamplatform.data.records import Record
from beamplatform.errors import UserError
from beamplatform.inference import Export, check_export, create_engine
from beamplatform.inference.text import load_codec
from beamplatform.models import resolve_path, torch_dtype
from beamplatform.storage import local_folder
from beamplatform.tasks import Task, get_task
from beamplatform.tasks.evaluate import Evaluation, evaluate

if TYPE_CHECKING:
    from beamplatform.suite import EvaluationSection, ModelSection


def tasks_of(section: EvaluationSection) -> list[Task]:
    """The suite's tasks with the suite's own answer length, where it sets one."""
    tasks = [get_task(name) for name in section.tasks]
    if section.max_new_tokens is None:
        return tasks
    return [dataclasses.replace(task, max_new_tokens=section.max_new_tokens) for task in tasks]


class Evaluator:
    """The base model, loaded once, and the test records. Runs in this process or as a Ray actor."""

    def __init__(
        self,
        model: ModelSection,
        section: EvaluationSection,
        records: Mapping[str, list[Record]],
        *,
        adapters: int,
        largest_rank: int,
    ) -> None:
        import torch

        self._base = resolve_path(model.path)
        self._section = section
        self._records = dict(records)
        dtype = torch_dtype(model.dtype, on_gpu=torch.cuda.is_available())
        self._engine = create_engine(
            section.engine,
            self._base,
            dtype=str(dtype).removeprefix("torch."),
            batch_size=section.batch_size,
            max_adapters=adapters,
            max_lora_rank=largest_rank,
        )

    def evaluate(self, export: Export | None, on_progress: Callable[[str, int, int], None] | None = None) -> Evaluation:
        """Score one exported model, or the base model for None.

        Raises:
            UserError: the export does not belong to the base model, or the engine cannot serve it.
        """
        with contextlib.ExitStack() as stack:
            if export is not None:
                folder = stack.enter_context(local_folder(export.path))
                export = dataclasses.replace(export, path=str(folder))
                check_export(self._base, export)
            return evaluate(
                self._engine,
                export,
                tasks_of(self._section),
                self._records,
                beams=self._section.beams,
                on_progress=on_progress,
            )

    def check(self) -> None:
        """Find out, without loading the model, whether every task can be scored here and its prompts fit the context.

        Raises:
            UserError: what a task lacks, or names the first task with prompts that do not fit, and how many.
        """
        codec = load_codec(self._base)
        for task in tasks_of(self._section):
            task.requires()
            prompts = [task.prompt(record) for record in self._records[task.name]]
            lengths = [len(ids) + task.max_new_tokens for ids in codec.tokenizer(prompts)["input_ids"]]
            too_long = sum(length > codec.context for length in lengths)
            if too_long:
                raise UserError(
                    f"{task.name}: {too_long} of {len(prompts)} prompts do not fit the model's context of "
                    f"{codec.context} tokens with {task.max_new_tokens} new ones (the longest needs {max(lengths)}); "
                    "leave the task out, lower evaluation.max_records, or choose another model"
                )

    def close(self) -> None:
        self._engine.close()


def evaluator_actor(*arguments: Any, cpus: int, use_gpu: bool, **options: Any) -> Any:
    """An Evaluator as a Ray actor with its own GPU (or cores); Ray is running already."""
    import ray

    actor = ray.remote(num_cpus=cpus, num_gpus=1 if use_gpu else 0)(Evaluator)
    return actor.remote(*arguments, **options)
