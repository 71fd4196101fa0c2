"""The beam search inside transformers' Trainer (and TRL's trainers, which are Trainers)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from beamlora.search import BeamReport, BeamSearch


class BeamLoraCallback(TrainerCallback):
    """`Trainer(model, ..., callbacks=[BeamLoraCallback(seed=0)])` trains BeamLoRA, beam steps included.

    Every checkpoint also holds the search's state, so that a resumed run continues like an uninterrupted one.
    For each beam step, `beam/threshold` and `beam/operated_ranks` are added to `trainer.state.log_history`.

    Args:
        seed: seed of the random pairing of ranks.
        adapter_name: the adapter to search.
        resume_from: the checkpoint folder from which a resumed run starts, if it is not
            `<output_dir>/checkpoint-<step>`. Trainer does not tell its callbacks which folder it loads.
        on_report: called with the BeamReport of each beam step, for logging elsewhere.
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
        """Create the beam search. If training resumes, load the search's saved state.

        Raises:
            ValueError: `BeamSearch` refuses the model, the optimizer or the settings, or the saved state does not fit.
            FileNotFoundError: the checkpoint holds no state of a beam search.
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
        """Count one optimizer step, and log the beam step if there was one."""
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
        """Add the search's state to the checkpoint that Trainer has written."""
        folder = _checkpoint_folder(args, state)
        if self.search is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.search.save_state(folder)


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
