"""From records to token sequences with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from beamplatform.data.token_codec import TokenCodec
from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record

IGNORED = -100
"""The label of a token that the loss does not count (PyTorch's cross_entropy default)."""


@dataclass(frozen=True)
class Example:
    """One training sequence: token ids, and for each the label (its own id, or IGNORED)."""

    ids: list[int]
    labels: list[int]

    @property
    def targets(self) -> int:
        """Tokens the loss counts; the first token has no predecessor to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])


def tokenise(
    records: Sequence[Record], tokenizer: Any, *, max_length: int, loss_on: Literal["response", "all"]
) -> list[Example]:
    """Prompt, response and end-of-sequence token of every record, cut at `max_length` tokens.

    A record whose prompt alone fills `max_length` has nothing to learn under `loss_on="response"`. It is kept, so that
    step counts do not depend on it, and adds nothing to the loss; the plan of a sweep counts such records
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
        counted = 0 if loss_on == "all" else len(prompt)
        examples.append(Example(ids, [IGNORED] * min(counted, len(ids)) + ids[counted:]))
    return examples
