"""The interface of a generation engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


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
