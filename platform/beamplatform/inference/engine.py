"""The interface of a generation engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Export:
    """The result of a trial, as files that an engine can load.

    Attributes:
        kind: "adapter" is a plain LoRA adapter in PEFT's layout, "merged" a whole model.
        path: its folder, which holds the weights as safetensors.
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
    """How completions are generated: greedily, by beam search (several beams), or sampled (temperature above 0).

    Attributes:
        max_new_tokens: the longest completion, in tokens.
        beams: 1 is greedy; 4 is the setting of the published commonsense results.
        stop: a completion ends before the first of these texts.
        samples: completions for each prompt; more than one needs a temperature.
        temperature: 0 means no sampling.
        top_p: nucleus sampling: tokens are drawn from the smallest set with at least this total probability.
        seed: the seed of the sampling.
    """

    max_new_tokens: int
    beams: int = 1
    stop: tuple[str, ...] = ()
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def by_export(requests: Sequence[Request]) -> dict[Export | None, list[int]]:
    """Export -> indices of its requests: first the base model (None), then adapters, then merged models."""
    rank = {None: 0, "adapter": 1, "merged": 2}
    groups: dict[Export | None, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.export, []).append(index)
    return dict(sorted(groups.items(), key=lambda item: rank[item[0].kind if item[0] else None]))


class Engine(Protocol):
    """Generates text with a base model, and with adapters and merged models made from it."""

    def generate(self, requests: Sequence[Request], generation: Generation) -> Iterator[tuple[int, list[str]]]:
        """Yield each request's index and its `generation.samples` completions, as soon as they are ready.

        The engine chooses the order. Adapters share the base model and, if the engine supports it, a batch; merged
        models are served one after another. A completion does not include the prompt. It ends before the
        end-of-sequence token, before the first of the stop texts, or after `max_new_tokens` tokens. The engine stays
        usable if the caller stops the iteration early.

        Raises:
            UserError: an export is missing or does not fit the base model (`check_export`), a prompt does not fit the
                model's context, the engine does not support a request, or it does not apply an adapter
                (`inference.applied_check`).
        """

    @property
    def version(self) -> str:
        """Name and release of the library that generates: another release may decide a near-tie differently."""

    def close(self) -> None:
        """Free the models; the engine loads them again when it is next used."""
