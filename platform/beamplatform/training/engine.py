"""The DeepSpeed engine around a model whose adapter is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from beamplatform.config.sections import TrainingSection


def deepspeed_config(training: TrainingSection, *, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for `training`, without the optimizer, which is passed to the engine."""
    return {
        "train_batch_size": training.global_batch,
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": training.gradient_clipping,
        "bf16": {"enabled": bf16},
        # Keep all buffers in float32. A sharded model is made in bfloat16, where RoPE's frequencies would be off by up
        # to 0.4 %.
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
    """Load a base model straight into shards inside this context, under ZeRO-3; do nothing at other stages.

    This is transformers' own mechanism: each layer is created in shards, and worker 0 fills it from the memory-mapped
    file, so no worker ever holds more than one whole layer. PEFT gathers each layer that it inspects.
    """
    if training.zero_stage < 3:
        yield
        return
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    _choose_accelerator()
    deepspeed.init_distributed(dist_init_required=False)  # torch's process group exists already
    # transformers uses this configuration while the object exists.
    hf_config = HfDeepSpeedConfig(deepspeed_config(training, bf16=bf16))
    try:
        yield
    finally:
        del hf_config
        unset_hf_deepspeed_config()


def _choose_accelerator() -> None:
    """Disable an operation that DeepSpeed would compile at its first use on a CPU, which fails without a compiler.

    The operation is a collective in shared memory; gloo does the same work.
    """
    import deepspeed

    if deepspeed.accelerator.get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def make_engine(
    model: torch.nn.Module, training: TrainingSection, optimizer: torch.optim.Optimizer, *, bf16: bool
) -> Any:
    """Wrap a model and the optimizer of its trainable parameters in a DeepSpeed engine on torch's process group."""
    import deepspeed
    import torch

    _choose_accelerator()
    config = deepspeed_config(training, bf16=bf16)
    # DeepSpeed allocates its whole gradient bucket at once, by default 500 million values.
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    config["zero_optimization"]["reduce_bucket_size"] = min(trained, 500_000_000)
    if bf16:  # sharded parameters are in bfloat16 already; the engine would cast either all or none
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
        # DeepSpeed's initialisation has taken a step with empty gradients, which Adam would count.
        engine.optimizer.optimizer.state.clear()
    return engine


@contextlib.contextmanager
def whole_parameters(engine: Any) -> Iterator[torch.nn.Module]:
    """Yield the engine's model with its trainable parameters unsharded, on every worker.

    This is a collective call. Only ZeRO stage 3 shards parameters, and there changes made inside are not kept. At lower
    stages the model is yielded as it is.
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
    """Yield the engine's model, which is whole and in host memory on the worker that sets `here`.

    This is a collective call. ZeRO stage 3 shards the model. There, the parameters are gathered one at a time, so no
    other worker and no GPU holds more than one whole parameter, and changes made inside are not kept. At lower stages
    the model is yielded as it is.
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
