"""Stage "evaluate": one engine in a Ray actor answers all tasks with each trial's exported model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from beamplatform.errors import UserError
from beamplatform.inference import Export

if TYPE_CHECKING:
    from beamplatform.evaluation.scores import Evaluation

_ATTEMPTS = 3
"""The waiting models fail when this many actors in a row are lost without an outcome between them."""


class Outcomes(Protocol):
    """Receives the progress and outcome of each trial's evaluation."""

    def evaluating(self, index: int, answered: int) -> None: ...

    def evaluated(self, index: int, result: Evaluation) -> None: ...

    def unanswered(self, index: int, why: str) -> None: ...


class EvaluationStage:
    """Evaluates the models of trained trials in a thread of the driver, beside training if resources allow.

    All waiting adapters come first and are evaluated together in the engine's batches. When no adapter waits, one
    merged model is evaluated, which replaces the base model in the engine.

    Args:
        exports: the exports of all trials, by index.
        outcomes: called from the evaluation's thread.
        actor: makes an `Evaluator` as a Ray actor. It is called before the first model is evaluated, and again if the
            actor is lost.
        beside_training: whether models are evaluated as soon as they are added, rather than all in `finish`.
        reserved: (cores, GPUs) that are kept for the engine beside training.
    """

    def __init__(
        self,
        exports: Sequence[Export],
        outcomes: Outcomes,
        actor: Callable[[], Any],
        *,
        beside_training: bool,
        reserved: tuple[int, int] = (0, 0),
    ) -> None:
        self.reserved = reserved
        self._exports = exports
        self._outcomes = outcomes
        self._make_actor = actor
        self._actor: Any = None
        self._waiting: list[int] = []
        self._no_more = self._abandoned = False
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="evaluation", daemon=True)
        self.failed: dict[int, str] = {}
        if beside_training:
            self._thread.start()

    @property
    def started(self) -> bool:
        """Whether the engine has taken the cores and GPUs that are reserved for it."""
        return self._actor is not None

    def add(self, index: int) -> None:
        """Add a trial that has exported its model."""
        with self._changed:
            self._waiting.append(index)
            self._changed.notify()

    def finish(self) -> dict[int, str]:
        """Wait until all added models are evaluated; return index -> reason for each model that failed."""
        if self._thread.ident is None:
            self._thread.start()
        with self._changed:
            self._no_more = True
            self._changed.notify()
        while self._thread.is_alive():
            self._thread.join(0.5)  # a join without a timeout would block Ctrl-C
        if self._error is not None:
            raise self._error
        return self.failed

    def abandon(self) -> None:
        """Stop evaluating and reporting, because Ray is about to shut down and must not be started again."""
        with self._changed:
            self._abandoned = self._no_more = True
            self._waiting.clear()
            self._changed.notify()

    def _run(self) -> None:
        try:
            while batch := self._next():
                self._evaluate(batch)
        except BaseException as error:  # `finish` raises it in the main thread
            self._error = error

    def _next(self) -> list[int]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._no_more)
            adapters = [index for index in self._waiting if self._exports[index].kind == "adapter"]
            batch = adapters or self._waiting[:1]
            self._waiting = [index for index in self._waiting if index not in batch]
            return batch

    def _evaluate(self, batch: list[int]) -> None:
        """Evaluate these models. If the actor is lost, go on with a new one, which finds the stored answers."""
        from ray.exceptions import RayError, RayTaskError

        from beamplatform.sweep.trials.train_stage import reason

        lost = 0
        while batch and not self._abandoned:
            before = len(batch)
            try:
                self._ask(batch)
            except RayError as error:
                if self._abandoned:
                    return
                self._actor = None
                lost = lost + 1 if len(batch) == before else 1
                if lost == _ATTEMPTS or isinstance(error, RayTaskError):  # the same error would come again
                    self._fail(batch, reason(error))

    def _ask(self, batch: list[int]) -> None:
        """Evaluate the models of `batch`, and remove each one from it when its outcome is known."""
        import ray

        with self._changed:  # an actor that is made after `abandon` would start Ray again
            if self._abandoned:
                return
            if self._actor is None:
                self._actor = self._make_actor()
        indices = list(batch)
        for index in indices:
            self._outcomes.evaluating(index, 0)
        stream = self._actor.stream.options(num_returns="streaming")
        for reference in stream.remote([self._exports[index] for index in indices]):
            event = ray.get(reference)
            if self._abandoned:
                return
            index = indices[event.index]
            if event.outcome is None:
                self._outcomes.evaluating(index, event.answered)
                continue
            batch.remove(index)
            if isinstance(event.outcome, UserError):
                self._fail_one(index, str(event.outcome))
                continue
            try:
                self._outcomes.evaluated(index, event.outcome)
            except Exception as error:  # a full disk must not end the evaluation of the other trials
                self._fail_one(index, f"its scores could not be stored ({type(error).__name__}: {error})")

    def _fail(self, batch: list[int], why: str) -> None:
        while batch:
            self._fail_one(batch.pop(), why)

    def _fail_one(self, index: int, why: str) -> None:
        self.failed[index] = why
        self._outcomes.unanswered(index, why)
