"""Converts records to token sequences with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from beamplatform.data.token_codec import TokenCodec
from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record

IGNORED = -100
"""Label of a token that does not count in the loss (the default `ignore_index` of PyTorch's cross_entropy)."""


@dataclass(frozen=True)
class Example:
    """One training sequence: token ids, and one label per token (the token's own id, or IGNORED)."""

    ids: list[int]
    labels: list[int]

    @property
    def targets(self) -> int:
        """Number of tokens that count in the loss; the first never does, as no token before it could predict it."""
        return sum(label != IGNORED for label in self.labels[1:])


def tokenise(
    records: Sequence[Record], tokenizer: Any, *, max_length: int, loss_on: Literal["response", "all"]
) -> list[Example]:
    """Return one example per record: prompt, response and end-of-sequence token, cut at `max_length` tokens.

    Under `loss_on="response"` a record whose prompt alone fills `max_length` adds nothing to the loss. It is kept, so
    that the number of steps does not depend on it. The plan of a sweep counts such records
    (`beamplatform.data.quality`).

    Raises:
        UserError: the tokenizer has no end-of-sequence token.
    """
    codec = TokenCodec(tokenizer)
    texts = [alpaca_prompt(record.instruction, record.input) for record in records]
    prompts = codec.prompts(texts)
    responses = codec.responses(texts, prompts, [record.output for record in records])
    examples = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = (prompt + response)[:max_length]
        first_counted = 0 if loss_on == "all" else len(prompt)
        examples.append(Example(ids, [IGNORED] * min(first_counted, len(ids)) + ids[first_counted:]))
    return examples
