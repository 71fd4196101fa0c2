"""Scores exported models with one engine on the test records, in this process or as a Ray actor."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from beamplatform.errors import UserError
from beamplatform.evaluation.answer_store import StoredAnswers
from beamplatform.evaluation.evaluate import Event, Settings, evaluate_all
from beamplatform.hardware import cuda_is_available
from beamplatform.inference import Export, Generation, check_export, create_engine
from beamplatform.inference.identity import content_hash, fingerprint
from beamplatform.inference.text import load_codec
from beamplatform.io.disk_cache import cached_json
from beamplatform.io.storage import local_folder
from beamplatform.models.loading import dtype_name, resolve_path
from beamplatform.tasks import Task, get_task
from beamplatform.tasks.record import Record

if TYPE_CHECKING:
    from beamplatform.config.sections import EvaluationSection, ModelSection

_TELL_EVERY = 0.5
"""Seconds between two progress events of one model."""
_TEXT = 2
"""Version of the conversion between text and tokens, to be raised when the conversion changes.

It is part of the key of a stored answer.
"""


def tasks_of(section: EvaluationSection, options: Collection[str] = ()) -> list[Task]:
    """Return the suite's tasks, with the answer length and the comparison that the suite sets, if it does.

    Args:
        section: the evaluation section of the suite.
        options: task options (`Task.options`) beside the section's own.
    """
    tasks = [get_task(name).with_options({section.equivalence, *options}) for name in section.tasks]
    if section.max_new_tokens is None:
        return tasks
    return [dataclasses.replace(task, max_new_tokens=section.max_new_tokens) for task in tasks]


class Evaluator:
    """Scores exported models on the test records, with a base model that is loaded once.

    It runs in this process or as a Ray actor.

    Args:
        adapters: largest number of adapters that are asked together.
        largest_rank: largest rank of any of these adapters.
        store: where answers are stored (`answer_store`); None = nowhere.
        options: task options (`Task.options`) beside the section's own.

    Attributes:
        about: the engine with its release, and the dtype.
    """

    def __init__(
        self,
        model: ModelSection,
        section: EvaluationSection,
        records: Mapping[str, list[Record]],
        *,
        adapters: int,
        largest_rank: int,
        store: str | None = None,
        options: Collection[str] = (),
    ) -> None:
        self._base = resolve_path(model.path)
        self._tasks = tasks_of(section, options)
        self._settings = Settings(
            section.beams, section.samples, section.temperature, section.top_p, section.sampling_seed
        )
        self._records = dict(records)
        self._store = store
        dtype = dtype_name(model.dtype, on_gpu=cuda_is_available())
        self._engine = create_engine(
            section.engine,
            self._base,
            dtype=dtype,
            batch_size=section.batch_size,
            max_adapters=min(adapters, section.adapters),
            max_lora_rank=largest_rank,
        )
        self._hashes: dict[str, str] = {}
        self.about = {"engine": self._engine.version, "dtype": dtype}

    def stream(self, exports: Sequence[Export | None]) -> Iterator[Event]:
        """Ask the models, and yield progress and scores; progress comes at most twice a second for each model.

        The base model and the adapters are asked together, then each merged model by itself.

        Args:
            exports: the models, in folders or at URIs; None is the base model.
        """
        together = [index for index, export in enumerate(exports) if export is None or export.kind == "adapter"]
        merged = [[index] for index in range(len(exports)) if index not in together]
        for turn in [together, *merged] if together else merged:
            for event in self._stream([exports[index] for index in turn]):
                yield dataclasses.replace(event, index=turn[event.index])

    def _stream(self, exports: Sequence[Export | None]) -> Iterator[Event]:
        """Ask models that the engine can serve together."""
        last_told: dict[int, float] = {}
        with contextlib.ExitStack() as stack:
            fetched: dict[int, Export | None] = {}
            for index, export in enumerate(exports):
                try:
                    fetched[index] = self._fetch(export, stack)
                except UserError as error:
                    yield Event(index, outcome=error)
                except Exception as error:  # the client of any storage may raise errors of its own
                    path = export.path if export else self._base
                    yield Event(index, outcome=UserError(f"cannot fetch {path} ({type(error).__name__}: {error})"))
            indices = list(fetched)
            for event in evaluate_all(
                self._engine,
                list(fetched.values()),
                self._tasks,
                self._records,
                settings=self._settings,
                answers=self._answers,
            ):
                now = time.monotonic()
                if event.outcome is not None or now - last_told.get(event.index, 0.0) > _TELL_EVERY:
                    last_told[event.index] = now
                    yield dataclasses.replace(event, index=indices[event.index])

    def _fetch(self, export: Export | None, stack: contextlib.ExitStack) -> Export | None:
        """Return the export in a folder of this machine, after checking that it fits the base model."""
        if export is None:
            return None
        folder = stack.enter_context(local_folder(export.path))
        local_export = dataclasses.replace(export, path=str(folder))
        check_export(self._base, local_export)
        return local_export

    def _answers(self, export: Export | None, generation: Generation) -> StoredAnswers:
        if self._store is None:
            return StoredAnswers(None, {})
        about = {
            "base_model": self._content(self._base),
            "export": None if export is None else [export.kind, self._content(export.path)],
            **self.about,
            "text": _TEXT,
            "generation": dataclasses.asdict(generation),
        }
        return StoredAnswers(self._store, about)

    def _content(self, path: str) -> str:
        """Return the content hash of a model; it is computed once, because it takes reading the whole model."""
        key = path if path == self._base else f"{path} {fingerprint(Export('merged', path))}"
        if key not in self._hashes:
            self._hashes[key] = content_hash(path)
        return self._hashes[key]

    def check(self) -> None:
        """Check, without loading the model, that every task can be scored here and that its prompts fit the context.

        Raises:
            UserError: a task cannot be scored here, or some prompts do not fit. The message says what the task lacks,
                or names the first task with such prompts and their number.
        """
        for task in self._tasks:
            task.check_machine()
            task.notes(self._records[task.name])
        prompts = {task.name: [task.question(record) for record in self._records[task.name]] for task in self._tasks}
        about = (self._content(self._base), version("transformers"), prompts)
        measured = cached_json("prompt-lengths", about, lambda: self._lengths(prompts))
        for task in self._tasks:
            lengths = [length + task.max_new_tokens for length in measured["lengths"][task.name]]
            too_long = sum(length > measured["context"] for length in lengths)
            if too_long:
                raise UserError(
                    f"{task.name}: {too_long} of {len(lengths)} prompts do not fit the model's context of "
                    f"{measured['context']} tokens with {task.max_new_tokens} new ones (the longest needs "
                    f"{max(lengths)}); "
                    "lower evaluation.max_new_tokens, leave the task out, or choose a model with a longer context"
                )

    def _lengths(self, prompts: Mapping[str, list[str]]) -> dict[str, Any]:
        """Return the length of the model's context, and of every prompt, in tokens."""
        codec = load_codec(self._base)
        return {"context": codec.context, "lengths": {name: codec.lengths(texts) for name, texts in prompts.items()}}

    def close(self) -> None:
        self._engine.close()


def evaluator_actor(*arguments: Any, cpus: int, use_gpu: bool, **options: Any) -> Any:
    """Start an Evaluator as a Ray actor with its own GPU (or cores); Ray must be running already."""
    import ray

    actor = ray.remote(num_cpus=cpus, num_gpus=1 if use_gpu else 0)(Evaluator)
    return actor.remote(*arguments, **options)
