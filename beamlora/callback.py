"""The beam search inside transformers' Trainer (and TRL's trainers, which are Trainers)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from beamlora.search import BeamReport, BeamSearch


class BeamLoraCallback(TrainerCallback):
    """`Trainer(model, ..., callbacks=[BeamLoraCallback(seed=0)])` trains BeamLoRA, beam steps included.

    Every checkpoint also holds the search's state, so that a resumed run is the uninterrupted one.
    `beam/threshold` and `beam/operated_ranks` of each beam step go into `trainer.state.log_history`.

    Args:
        seed: for the random pairing of ranks.
        adapter_name: the adapter to search.
        resume_from: the checkpoint folder that a resumed run starts from, where it is not
            `<output_dir>/checkpoint-<step>`: Trainer does not tell its callbacks.
        on_report: called with every BeamReport, for logging elsewhere.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        adapter_name: str = "default",
        resume_from: str | Path | None = None,
        on_report: Callable[[BeamReport], None] | None = None,
    ) -> None:
        self.seed = seed
        self.adapter_name = adapter_name
        self.search: BeamSearch | None = None
        self._resume_from = resume_from
        self._on_report = on_report

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Build the search; when training resumes, continue the saved one.

        Raises:
            ValueError: as BeamSearch.
            FileNotFoundError: the checkpoint has no state of a beam search.
        """
        self.search = BeamSearch(
            kwargs["model"],
            kwargs["optimizer"],
            total_steps=state.max_steps,
            seed=self.seed,
            lr_schedule=str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
            adapter_name=self.adapter_name,
        )
        if state.global_step > 0:
            folder = self._resume_from or _checkpoint_folder(args, state)
            try:
                self.search.load_state(folder)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{error}: training resumes at step {state.global_step} without the state of "
                    "its beam search; name the checkpoint's folder with BeamLoraCallback(resume_from=...)"
                ) from None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One optimizer step has been taken."""
        assert self.search is not None, "on_train_begin comes first"
        report = self.search.step()
        if report is None:
            return
        state.log_history.append(
            {
                "beam/threshold": report.threshold,
                "beam/operated_ranks": report.operated_ranks,
                "epoch": state.epoch,
                "step": state.global_step,
            }
        )
        if self._on_report is not None:
            self._on_report(report)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint has been written: add the search's state."""
        folder = _checkpoint_folder(args, state)
        if self.search is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.search.save_state(folder)


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
