"""The sections of a preset, with the meaning, the type, the range and the default of every key.

This module imports neither torch nor Ray: a bad suite is refused in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from beamplatform.config.base import LocalPath, Section, Seed, TaskName
from beamplatform.tasks import get_task
from beamplatform.validation import describe_error, expand_ranges, repeated


class ModelSection(Section):
    """The base model every trial starts from."""

    path: LocalPath = Field(description="'tiny' (the shipped model), a local folder or a Hugging Face hub id")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU, else float32")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")


Share = Annotated[float, Field(ge=0, le=1)]


class Tolerances(Section):
    """Limits for the shares of records with defects.

    A plan with a share above its limit is refused. The counts are reported in any case.
    """

    without_targets: Share = Field(0.05, description="records without a token that counts in the loss")
    cut: Share = Field(0.25, description="records longer than max_length, which lose their end of sequence")
    duplicates: Share = Field(0.25, description="records that repeat an earlier one")
    empty: Share = Field(0.05, description="records with a blank instruction or output")
    validation_trained: Share = Field(
        0.25, description="validation records whose question is also in a training record"
    )
    test_questions: Share = Field(
        0.01, description="training and validation records whose question is also in a test set"
    )
    unknown_answers: Share = Field(0.05, description="gold answers that the task cannot score, for each task and split")


class DataSection(Section):
    """Where records come from and how they become token sequences."""

    source: LocalPath | None = Field(
        None,
        description="test and training records: 'embedded', a folder with <task>/{train,test}.json, or a hub id",
    )
    train_source: LocalPath | None = Field(
        None, description="training records, if they are not those of `source`: a .json/.jsonl file or a hub id"
    )
    columns: dict[Literal["instruction", "output"], str] = Field(
        default_factory=dict,
        description="names of the two fields in train_source, if they are not instruction and output",
    )
    max_length: Annotated[int, Field(ge=8)] = Field(256, description="tokens; longer examples are cut at the right")
    loss_on: Literal["response", "all"] = Field("response", description="which tokens count in the loss")
    train_records: Annotated[int, Field(ge=1)] | None = Field(None, description="use only the first N after shuffling")
    validation_records: Annotated[int, Field(ge=1)] = Field(
        200, description="number of training records held out for validation"
    )
    tolerated: Tolerances = Field(
        Tolerances(), description="how many records may be cut, repeated, empty and so on before a plan is refused"
    )
    split_seed: Seed = Field(0, description="seed of the train/validation split, the same for every trial")

    @field_validator("columns")
    @classmethod
    def _distinct_columns(cls, value: dict[str, str]) -> dict[str, str]:
        instruction, output = (value.get(key, key) for key in ("instruction", "output"))
        if instruction == output:
            raise ValueError(f"instruction and output must be two fields, got {instruction!r} for both")
        return value

    @model_validator(mode="after")
    def _columns_of_something(self) -> DataSection:
        if self.columns and self.train_source is None:
            raise ValueError("columns names fields of train_source, which is not given; give both or neither")
        return self


class WorkerRange(Section):
    """A range of worker numbers.

    A run gets as many workers as the cluster has room for when the run starts, or restarts after losing a worker.
    """

    min: Annotated[int, Field(ge=1, le=10**6)]
    max: Annotated[int, Field(ge=1, le=10**6)]


class TrainingSection(Section):
    """One training run: batch, length, schedule and sharding."""

    workers: Annotated[int, Field(ge=1)] | WorkerRange = Field(
        1,
        description="number of Ray Train workers (one GPU each, where there are GPUs); {min: 1, max: 8}: as many as "
        "the cluster has room for, among the numbers that divide the global batch",
    )
    device: Literal["auto", "gpu", "cpu"] = Field(
        "auto", description="auto: GPUs where the machine or cluster has them"
    )
    cpus_per_worker: Annotated[int, Field(ge=1)] = Field(1, description="CPU cores a worker reserves")
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = Field(
        1, description="GPUs a worker reserves; with 0.25 four small trials share a GPU; below 1 needs workers: 1"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage")
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = Field(None, description="passes over the training records")
    max_steps: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        None, description="optimizer steps, instead of epochs"
    )
    global_batch: Annotated[int, Field(ge=1)] = Field(16, description="examples per optimizer step, over all workers")
    micro_batch: Annotated[int, Field(ge=1)] = Field(16, description="examples per forward pass of one worker")
    zero_persistence: Annotated[int, Field(ge=0)] = Field(
        100_000, description="ZeRO-3: parameters with fewer values than this stay whole on every worker"
    )
    offload_optimizer: bool = Field(False, description="keep master weights and moments in CPU memory (ZeRO 1 to 3)")
    loss_head: Literal["counted", "chunked", "all"] = Field(
        "counted",
        description="tokens whose logits are computed. counted: those that count in the loss; chunked: the same, in "
        "chunks (less memory for large vocabularies; not under ZeRO-3); all: every token. The loss is the same",
    )
    packing: bool = Field(
        False,
        description="put the examples of a micro-batch into one row without padding; on a GPU in bfloat16 this uses "
        "PyTorch's variable-length attention; for transformers models with exchangeable attention (Llama, Qwen, "
        "Mistral)",
    )
    fused_adamw: bool = Field(False, description="PyTorch's fused AdamW: one pass over the adapter and its moments")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="shape of the learning rate after warm-up"
    )
    warmup: int | float = Field(0, description="warm-up: optimizer steps (integer) or a fraction of all steps")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    gradient_clipping: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0 = off")
    log_every: Annotated[int, Field(ge=1)] = Field(10, description="optimizer steps between two reports")
    validate_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="optimizer steps between two validations; null = only at the end"
    )
    checkpoint_every: Annotated[int, Field(ge=1)] | None = Field(
        500, description="optimizer steps between two checkpoints; null = none"
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        try:
            return WorkerRange.model_validate(value)
        except ValidationError as error:
            location, message = describe_error(error, WorkerRange)
            raise ValueError(f"{'.'.join(location)}: {message}") from None

    @field_validator("warmup")
    @classmethod
    def _steps_or_fraction(cls, value: int | float) -> int | float:
        if value >= 0 if isinstance(value, int) else 0 <= value < 1:
            return value
        raise ValueError(f"must be an integer >= 0 (optimizer steps) or a fraction of all steps below 1, got {value}")

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSection:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of epochs and max_steps")
        if self.loss_head == "chunked" and self.zero_stage == 3:
            raise ValueError("loss_head: chunked needs the head's weight whole: zero_stage 0, 1 or 2")
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        most = self.workers if isinstance(self.workers, int) else self.workers.max
        if self.gpus_per_worker < 1 and most > 1:  # NCCL refuses two workers on one GPU
            raise ValueError(f"gpus_per_worker ({self.gpus_per_worker}) below 1 needs workers: 1, got {most}")
        if isinstance(self.workers, WorkerRange):
            if not self.worker_counts:
                raise ValueError(
                    f"workers: no number from {self.workers.min} to {self.workers.max} divides global_batch "
                    f"({self.global_batch})"
                )
        elif self.global_batch % (per_pass := self.workers * self.micro_batch):
            raise ValueError(
                f"global_batch ({self.global_batch}) must be a multiple of workers x micro_batch "
                f"({self.workers} x {self.micro_batch} = {per_pass})"
            )
        return self

    @property
    def worker_counts(self) -> list[int]:
        """The numbers of workers that the run may have, largest first; the global batch is the same with each."""
        if isinstance(self.workers, int):
            return [self.workers]
        numbers = range(self.workers.max, self.workers.min - 1, -1)
        return [number for number in numbers if self.global_batch % number == 0]

    @property
    def most_workers(self) -> int:
        return self.worker_counts[0]

    @property
    def least_workers(self) -> int:
        return self.worker_counts[-1]

    def with_workers(self, number: int) -> TrainingSection:
        """Return this section with `number` workers.

        The new micro-batch is the largest, up to the present one, that divides a worker's share of the global batch.
        """
        share = self.global_batch // number
        micro = next(size for size in range(min(self.micro_batch, share), 0, -1) if share % size == 0)
        return self.model_copy(update={"workers": number, "micro_batch": micro})

    @property
    def accumulation(self) -> int:
        """Micro-batches of one worker per optimizer step; for a range of workers, with the most workers."""
        if isinstance(self.workers, WorkerRange):
            return self.with_workers(self.most_workers).accumulation
        return self.global_batch // (self.workers * self.micro_batch)


_LEAST_TEMPERATURE = 0.01
"""Logits divided by a smaller temperature leave the range of floats, and vLLM uses this temperature instead."""


class EvaluationSection(Section):
    """How a trained model is scored."""

    tasks: tuple[TaskName, ...] = Field(
        (), description="task names, or .py files with tasks of your own, in the order of the table's columns"
    )
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    beams: Annotated[int, Field(ge=1)] = Field(1, description="1 = greedy; the published commonsense setting is 4")
    batch_size: Annotated[int, Field(ge=1)] = Field(64, description="prompts generated together")
    adapters: Annotated[int, Field(ge=1)] = Field(8, description="adapters that are served together on one base model")
    max_records: Annotated[int, Field(ge=1)] | None = Field(None, description="score only the first N per task")
    max_new_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="longest answer in tokens, instead of the task's own"
    )
    equivalence: Literal["string", "sympy"] = Field(
        "string",
        description="MATH: string compares normalised texts; sympy also compares as mathematics, and within 1e-4",
    )
    samples: Annotated[int, Field(ge=1)] = Field(1, description="answers drawn per question, for pass@k")
    temperature: Annotated[float, Field(ge=0, le=100)] = Field(0.0, description="sampling temperature; 0 = greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="nucleus sampling: share of the probability to sample from"
    )
    sampling_seed: Seed = Field(0, description="seed of the sampling")
    pass_at: tuple[Annotated[int, Field(ge=1)], ...] = Field((), description="also report pass@k for these k")

    @field_validator("tasks")
    @classmethod
    def _distinct_tasks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if (twice := repeated([get_task(name).name for name in value])) is not None:
            raise ValueError(f"the task {twice} is listed twice; name each task once")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationSection:
        if 0 < self.temperature < _LEAST_TEMPERATURE:
            raise ValueError(f"temperature must be 0, or at least {_LEAST_TEMPERATURE}, got {self.temperature}")
        if (twice := repeated(self.pass_at)) is not None:
            raise ValueError(f"pass_at: {twice} is listed twice; name each once")
        if self.temperature and self.beams > 1:
            raise ValueError(f"beams ({self.beams}) search, temperature ({self.temperature}) draws: choose one")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"samples ({self.samples}) need a temperature above 0, or all would be the same")
        if max(self.pass_at, default=1) > self.samples:
            raise ValueError(f"pass_at ({max(self.pass_at)}) needs at least as many samples, got {self.samples}")
        return self


Algorithm = Literal["random", "grid", "tpe", "asha", "hyperband", "bohb"]


class SearchSection(Section):
    """How configurations are searched, and the seeds with which the chosen one of each method is trained again.

    The budget is the same for every method. The configuration with the lowest validation loss is chosen; test tasks
    have no influence on the choice.
    """

    algorithm: Algorithm = Field(
        "random",
        description="random; grid: every point; tpe: proposed by Optuna from the results so far; asha, hyperband: "
        "random, and trials that fall behind are stopped; bohb: tpe with hyperband",
    )
    trials: Annotated[int, Field(ge=1, le=10_000)] = Field(
        8, description="configurations tried for each method; fewer if its space has fewer"
    )
    budget: Annotated[float, Field(gt=0)] | None = Field(
        None, description="GPU-hours of search for each method (worker-hours without GPUs), instead of trials"
    )
    seed: Seed = Field(0, description="seed of the search itself")
    trial_seed: Seed = Field(1000, description="training seed of the search's trials; must not be one of seeds")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0,), description="training seeds of each method's chosen configuration; 0-3 is 0, 1, 2, 3"
    )
    evaluate: Literal["chosen", "all"] = Field(
        "chosen",
        description="all: also score the search's trials on the test tasks, for pictures; these scores do not affect "
        "the choice",
    )
    grid_points: Annotated[int, Field(ge=2, le=1000)] = Field(
        3, description="grid: number of values taken from an interval, including both bounds"
    )
    reduction: Annotated[int, Field(ge=2)] = Field(
        3,
        description="asha, hyperband, bohb: reduction factor N; at each rung the best 1/N of the trials continue, "
        "N times longer",
    )
    max_concurrent: Annotated[int, Field(ge=1)] | None = Field(
        None, description="most trials at once; null = as many as fit"
    )
    methods: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="methods to compare if --methods is not given; null = all of the preset's"
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        if isinstance(value, (str, int)):
            value = value.split(",") if isinstance(value, str) else [value]
        return expand_ranges(value) if isinstance(value, (list, tuple)) else value

    @field_validator("methods")
    @classmethod
    def _distinct_methods(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if (twice := repeated(value or ())) is not None:
            raise ValueError(f"{twice} is listed twice; name each method once")
        return value

    @model_validator(mode="after")
    def _distinct_seeds(self) -> SearchSection:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        if self.trial_seed in self.seeds:
            raise ValueError(f"seeds must be fresh ones: {self.trial_seed} is the search's own (trial_seed)")
        return self

    @property
    def stops_early(self) -> bool:
        """Whether trials that fall behind are stopped."""
        return self.algorithm in ("asha", "hyperband", "bohb")

    @property
    def proposes(self) -> bool:
        """Whether new configurations depend on the results of earlier ones."""
        return self.algorithm in ("tpe", "bohb")
