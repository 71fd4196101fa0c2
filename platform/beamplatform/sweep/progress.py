"""The sweep's live display: trials done, running and waiting, the current loss and the time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

ShownState = Literal["waiting", "running", "trained", "evaluating", "done", "stopped", "failed"]
_BEFORE = "before"
"""Note of a trial that ended in an earlier part of the sweep."""

_AT_MOST = 12
"""At most this many running trials are shown, so that a large sweep fits a terminal."""


@dataclass
class TrialProgress:
    """What the display shows of one trial."""

    name: str
    total_steps: int
    questions: int = 0
    state: ShownState = "waiting"
    step: int = 0
    answered: int = 0
    loss: float | None = None
    note: str = ""


@dataclass
class SweepProgress:
    """Shows the progress of a sweep: a live display on a terminal, elsewhere one line per finished trial."""

    trials: list[TrialProgress]
    console: Console
    expected: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._training_ended: float | None = None
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> SweepProgress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def add(self, trial: TrialProgress) -> None:
        """Add a trial; its index is the number of trials added before."""
        self.trials.append(trial)

    def running(self, index: int) -> None:
        self.trials[index].state = "running"

    def advance(self, index: int, step: int, loss: float | None) -> None:
        trial = self.trials[index]
        trial.step, trial.loss = step, loss if loss is not None else trial.loss

    def trained(self, index: int) -> None:
        trial = self.trials[index]
        trial.state, trial.step = "trained", trial.total_steps
        self._training_ended = time.monotonic()
        self._line(f"trained   {trial.name}" + (f"  loss {trial.loss:.3f}" if trial.loss is not None else ""))

    def done_before(self, index: int) -> None:
        """Mark a trial that was done in an earlier part of the sweep."""
        trial = self.trials[index]
        trial.state, trial.step, trial.note = "done", trial.total_steps, _BEFORE

    def evaluating(self, index: int, answered: int) -> None:
        trial = self.trials[index]
        trial.state, trial.answered = "evaluating", answered

    def done(self, index: int, score: float | None) -> None:
        trial = self.trials[index]
        trial.answered = trial.questions
        trial.state, trial.note = "done", f"{100 * score:.1f} %" if score is not None else ""
        if score is not None:
            self._line(f"evaluated {trial.name}  {trial.note}")

    def ended_before(self, index: int, state: Literal["stopped", "failed"]) -> None:
        """Mark a trial that was stopped or failed in an earlier part of the sweep."""
        self.trials[index].state, self.trials[index].note = state, _BEFORE

    def stopped(self, index: int, reason: str) -> None:
        trial = self.trials[index]
        trial.state, trial.note = "stopped", reason
        self._line(f"stopped   {trial.name}: {reason}")

    def failed(self, index: int, reason: str) -> None:
        trial = self.trials[index]
        trial.state, trial.note = "failed", reason
        self._line(f"failed    {trial.name}: {reason}")

    def time_left(self) -> float | None:
        """Estimate the seconds left from the pace of all steps (start-up included) or, after training, of the answers.

        Returns None while no pace is known.
        """
        now = time.monotonic()
        counted = [t for t in self.trials if t.state not in ("failed", "stopped") and t.note != _BEFORE]
        total, steps = sum(t.total_steps for t in counted), sum(t.step for t in counted)
        total += self._to_come * (total // len(counted)) if counted else 0
        questions_in_all = sum(t.questions for t in counted)
        if steps < total:
            # The pace of the evaluation is not known before it starts, and it takes only a small part of a trial.
            return (now - self.started) / steps * (total - steps) if steps else None
        answered = sum(t.answered for t in counted)
        if answered and self._training_ended:
            return (now - self._training_ended) / answered * (questions_in_all - answered)
        return None

    def tell(self, text: str) -> None:
        """Print a line that stays above the live display."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @property
    def _to_come(self) -> int:
        """How many of the expected trials have not been added yet."""
        return max(0, self.expected - len(self.trials))

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            elapsed = time.monotonic() - self.started
            self.console.print(f"[{elapsed:5.0f} s] {text}", markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        count = {
            state: sum(t.state == state for t in self.trials)
            for state in ("waiting", "trained", "done", "stopped", "failed")
        }
        active = [t for t in self.trials if t.state in ("running", "evaluating")]
        left = self.time_left()
        parts = [
            f"{count['done']} of {max(self.expected, len(self.trials))} trials done",
            f"{len(active)} running",
            f"{count['trained']} trained" if count["trained"] else "",
            f"{count['waiting'] + self._to_come} waiting",
            f"{count['stopped']} stopped" if count["stopped"] else "",
            f"[red]{count['failed']} failed[/red]" if count["failed"] else "",
            f"{_clock(time.monotonic() - self.started)} so far",
            f"about {_clock(left)} left" if left is not None else "",
        ]
        steps, total = sum(t.step for t in self.trials), sum(t.total_steps for t in self.trials)
        return Group(
            Text.from_markup(" · ".join(part for part in parts if part)),
            Padding(ProgressBar(total=total, completed=steps, width=60), (0, 0, 0, 0)),
            _rows(active[:_AT_MOST]),
        )


def _rows(trials: Sequence[TrialProgress]) -> Table:
    table = Table.grid(padding=(0, 2))
    for trial in trials:
        training, answering = f"step {trial.step}/{trial.total_steps}", f"question {trial.answered}/{trial.questions}"
        position = training if trial.state == "running" else answering
        loss = f"loss {trial.loss:.3f}" if trial.loss is not None and trial.state == "running" else ""
        table.add_row(Text(trial.name, style="cyan"), position if trial.step else "starting", loss)
    return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
