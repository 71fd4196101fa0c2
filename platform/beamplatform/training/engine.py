"""The DeepSpeed engine around a model whose adapter is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from beamplatform.config.sections import TrainingSection


def deepspeed_config(training: TrainingSection, *, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for `training`; the optimizer is given to the engine, not named here."""
    return {
        "train_batch_size": training.global_batch,
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": training.gradient_clipping,
        "bf16": {"enabled": bf16},
        # All buffers. Made in bfloat16, as models in shards are, RoPE's frequencies would be off by up to 0.4 %.
        "data_types": {"keep_in_fp32_modules": ["*"]},
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


@contextlib.contextmanager
def sharding_from_the_start(training: TrainingSection, *, bf16: bool) -> Iterator[None]:
    """Within it, under ZeRO-3, a base model is loaded straight into shards, and PEFT gathers a layer that it looks at.

    transformers' own way: each layer is made in shards, and worker 0 fills it from the file, which is mapped, so that
    no worker ever holds more than one layer whole. At other stages this does nothing.
    """
    if training.zero_stage < 3:
        yield
        return
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    _choose_accelerator()
    deepspeed.init_distributed(dist_init_required=False)  # torch's process group is there
    known = HfDeepSpeedConfig(deepspeed_config(training, bf16=bf16))  # transformers knows it as long as it lives
    try:
        yield
    finally:
        del known
        unset_hf_deepspeed_config()


def _choose_accelerator() -> None:
    """Leave out what DeepSpeed would compile on a CPU at its first use, and fail where there is no compiler.

    A collective in shared memory; gloo does the same work.
    """
    import deepspeed

    if deepspeed.accelerator.get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def make_engine(
    model: torch.nn.Module, training: TrainingSection, optimizer: torch.optim.Optimizer, *, bf16: bool
) -> Any:
    """A DeepSpeed engine around a model and the optimizer of its trainable parameters; uses the process group."""
    import deepspeed
    import torch

    _choose_accelerator()
    config = deepspeed_config(training, bf16=bf16)
    # DeepSpeed allocates the whole bucket in which it sends gradients, by default 500 million values.
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    config["zero_optimization"]["reduce_bucket_size"] = min(trained, 500_000_000)
    if bf16:  # those of a base that is sharded already are in bfloat16; the engine casts either all or none
        for parameter in model.parameters():
            if parameter.is_floating_point() and not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(torch.bfloat16)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        optimizer=optimizer,
        config=config,
        dist_init_required=False,
    )
    if bf16 and training.zero_stage == 0:
        # DeepSpeed has taken a step with empty gradients here, which Adam would count.
        engine.optimizer.optimizer.state.clear()
    return engine


@contextlib.contextmanager
def whole_parameters(engine: Any) -> Iterator[torch.nn.Module]:
    """The engine's model with its trained parameters unsharded, on every worker. A collective.

    Only ZeRO stage 3 shards them; below it this does nothing. Changes made inside are not kept.
    """
    model = engine.module
    if engine.zero_optimization_stage() < 3:
        yield model
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([p for p in model.parameters() if p.requires_grad]):
        yield model


@contextlib.contextmanager
def whole_model(engine: Any, *, here: bool) -> Iterator[torch.nn.Module]:
    """The engine's model, on the worker that asks for it `here` whole, in the memory of the host. A collective.

    ZeRO stage 3 shards it: then one parameter after the other is gathered, so that no other worker, and no GPU, holds
    more than one of them. Below that stage this does nothing. Changes made inside are not kept.
    """
    model = engine.module
    if engine.zero_optimization_stage() < 3:
        yield model
        return
    import deepspeed

    whole = {}
    for parameter in model.parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if here:
                whole[parameter] = parameter.detach().cpu().clone()
    sharded = {parameter: parameter.data for parameter in whole}
    try:
        for parameter, value in whole.items():
            parameter.data = value
        yield model
    finally:
        for parameter, value in sharded.items():
            parameter.data = value
