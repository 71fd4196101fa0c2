"""The DeepSpeed engine around a model whose adapter is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from beamplatform.sections import TrainingSection


def deepspeed_config(training: TrainingSection, *, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for `training`; the optimizer is given to the engine, not named here."""
    return {
        "train_batch_size": training.global_batch,
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": training.gradient_clipping,
        "bf16": {"enabled": bf16},
        "zero_optimization": {
            "stage": training.zero_stage,
            "stage3_param_persistence_threshold": training.zero_persistence,
            "offload_optimizer": {"device": "cpu" if training.offload_optimizer else "none"},
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def make_engine(
    model: torch.nn.Module, training: TrainingSection, optimizer: torch.optim.Optimizer, *, bf16: bool
) -> Any:
    """A DeepSpeed engine around a model and the optimizer of its trainable parameters; uses the process group."""
    import deepspeed

    if deepspeed.accelerator.get_accelerator().device_name() == "cpu":
        # DeepSpeed would compile a shared-memory collective at its first use, and fail where there is no compiler.
        # Gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        optimizer=optimizer,
        config=deepspeed_config(training, bf16=bf16),
        dist_init_required=False,
    )
    if bf16 and training.zero_stage == 0:
        # DeepSpeed has taken a step with empty gradients here, which Adam would count.
        engine.optimizer.optimizer.state.clear()
    return engine


@contextlib.contextmanager
def whole_parameters(engine: Any, *, everything: bool) -> Iterator[torch.nn.Module]:
    """The engine's model with unsharded parameters: the trainable ones, or everything. A collective.

    Only ZeRO stage 3 shards them; below it this does nothing. Changes made inside are not kept.
    """
    model = engine.module
    if engine.zero_optimization_stage() < 3:
        yield model
        return
    import deepspeed

    parameters = [p for p in model.parameters() if everything or p.requires_grad]
    with deepspeed.zero.GatheredParameters(parameters):
        yield model
