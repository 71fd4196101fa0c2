"""The choice between the two generation engines; the one module that knows both."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

from beamplatform.errors import UserError
from beamplatform.hardware import cuda_is_available
from beamplatform.inference.engine import Engine

EngineKind = Literal["auto", "transformers", "vllm"]
DTYPES = ("float32", "bfloat16", "float16")


def create_engine(
    kind: EngineKind,
    base_model: str,
    *,
    dtype: str,
    batch_size: int,
    max_adapters: int,
    max_lora_rank: int,
) -> Engine:
    """Choose an engine; the models are loaded at its first use.

    Args:
        kind: "transformers" runs anywhere; "vllm" needs vLLM; "auto" is vLLM where it is installed and a CUDA
            GPU is present, else transformers.
        base_model: a folder or a hub id.
        dtype: "float32", "bfloat16" or "float16", the precision of the base model's weights.
        batch_size: number of sequences that are generated at once.
        max_adapters: adapters kept in memory at once; a new one replaces the least recently used.
        max_lora_rank: the largest rank an adapter may have (vLLM reserves memory for it).

    Raises:
        UserError: an unknown kind or dtype, a number below 1, or vLLM is requested but not installed.
    """
    if kind not in get_args(EngineKind):
        raise UserError(f"unknown engine {kind!r}: allowed are {', '.join(get_args(EngineKind))}")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: allowed are {', '.join(DTYPES)}")
    numbers = {"batch_size": batch_size, "max_adapters": max_adapters, "max_lora_rank": max_lora_rank}
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    installed = find_spec("vllm") is not None
    if kind == "vllm" and not installed:
        raise UserError(
            "engine 'vllm' needs vLLM, which is not installed here: install the extra 'vllm' (CUDA), "
            "or use the engine 'transformers'"
        )
    if kind == "vllm" or (kind == "auto" and installed and cuda_is_available()):
        from beamplatform.inference.vllm_engine import VllmEngine

        return VllmEngine(
            base_model,
            dtype=dtype,
            batch_size=batch_size,
            max_adapters=max_adapters,
            max_lora_rank=max_lora_rank,
        )
    from beamplatform.inference.transformers_engine import TransformersEngine

    return TransformersEngine(base_model, dtype=dtype, batch_size=batch_size, max_adapters=max_adapters)
