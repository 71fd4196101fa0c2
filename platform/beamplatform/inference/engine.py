"""The interface of a generation engine, and the choice between the two there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, Protocol, get_args

from beamplatform.errors import UserError
from beamplatform.models import cuda_is_available

EngineKind = Literal["auto", "transformers", "vllm"]
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Export:
    """What a trial leaves behind for others to load.

    Attributes:
        kind: "adapter" is a plain LoRA adapter in PEFT's layout, "merged" a whole model.
        path: its folder; weights as safetensors.
    """

    kind: Literal["adapter", "merged"]
    path: str


@dataclass(frozen=True)
class Request:
    """One prompt for the base model, or for an adapter or merged model made from it."""

    prompt: str
    export: Export | None = None


@dataclass(frozen=True)
class Generation:
    """How completions are made. Greedy for one beam, beam search for more; sampled at a temperature above 0.

    Attributes:
        max_new_tokens: the longest completion.
        beams: 1 is greedy; 4 is the setting of the published commonsense results.
        stop: texts before the first of which a completion ends.
        samples: completions of each prompt; more than one needs a temperature.
        temperature: 0 = never sampled.
        top_p: nucleus sampling: the smallest set of tokens with at least this probability together.
        seed: of the draws.
    """

    max_new_tokens: int
    beams: int = 1
    stop: tuple[str, ...] = ()
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def by_export(requests: Sequence[Request]) -> dict[Export | None, list[int]]:
    """The indices of each export's requests: those of the base model first, then adapters, then merged models."""
    rank = {None: 0, "adapter": 1, "merged": 2}
    found: dict[Export | None, list[int]] = {}
    for index, request in enumerate(requests):
        found.setdefault(request.export, []).append(index)
    return dict(sorted(found.items(), key=lambda item: rank[item[0].kind if item[0] else None]))


class Engine(Protocol):
    """Generates text with a base model, and with adapters and merged models made from it."""

    def generate(self, requests: Sequence[Request], generation: Generation) -> Iterator[tuple[int, list[str]]]:
        """Yield, as they are ready, each request's index and its completions (one, or `generation.samples`).

        The engine chooses the order. Adapters share the base model and, where the engine can, the batch; each merged
        model has its turn. A completion is without the prompt, and ends before the end-of-sequence token, before the
        first of the stop texts, or after `max_new_tokens` tokens. An iteration that is left early leaves the
        engine usable.

        Raises:
            UserError: an export is missing or does not fit the base model (`check_export`), a prompt does not fit the
                model's context, the engine cannot serve what is asked, or it does not apply an adapter
                (`inference.in_use`).
        """

    @property
    def version(self) -> str:
        """The library that generates, and its release: another one may decide a near-tie otherwise."""

    def close(self) -> None:
        """Free the models. The engine loads them again when it is used again."""


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
        batch_size: sequences generated at once.
        max_adapters: adapters kept in memory at once; the one unused for longest makes room.
        max_lora_rank: the largest rank an adapter may have (vLLM reserves memory for it).

    Raises:
        UserError: an unknown kind or dtype, a number below 1, or vLLM asked for and not installed.
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
