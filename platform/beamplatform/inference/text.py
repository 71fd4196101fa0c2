"""From prompts to token ids and back, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from beamplatform.data.token_codec import TokenCodec
from beamplatform.errors import UserError, first_line
from beamplatform.models.loading import load_tokenizer, read_config


@dataclass(frozen=True)
class TextCodec:
    """A base model's tokenizer with what generation has to know.

    Attributes:
        tokenizer: transformers' tokenizer of the base model.
        eos_token_ids: the tokens any of which ends a completion.
        pad_token_id: fills up shorter sequences; never read, as it is masked.
        context: the longest sequence of prompt and completion, in tokens.
    """

    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    context: int

    @cached_property
    def _tokens(self) -> TokenCodec:
        return TokenCodec(self.tokenizer)

    def encode(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Return the token ids of every prompt, the same as in training (`TokenCodec`).

        Raises:
            UserError: a prompt and its completion would not fit the model's context.
        """
        ids = self._tokens.prompts(prompts)
        for prompt, row in zip(prompts, ids, strict=True):
            if len(row) + max_new_tokens > self.context:
                raise UserError(
                    f"a prompt of {len(row)} tokens and {max_new_tokens} new ones exceed the model's context "
                    f"of {self.context}; it begins {prompt[:60]!r} and ends {prompt[-60:]!r}"
                )
        return ids

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of every prompt."""
        return [len(ids) for ids in self._tokens.prompts(prompts)]

    def decode(self, prompt: Sequence[int], completion: Sequence[int], stop: Sequence[str]) -> str:
        """Return a completion's text before the first end of sequence and before the first of the `stop` texts.

        Args:
            prompt: the token ids that the completion follows.
            completion: the token ids of the completion.
            stop: texts that end it.
        """
        end = next((i for i, token in enumerate(completion) if token in self.eos_token_ids), len(completion))
        text = self._tokens.decode(prompt, completion[:end])
        return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def load_codec(base_model: str) -> TextCodec:
    """Read the tokenizer, the generation config and the context length of a base model.

    Raises:
        UserError: one of them is missing, or neither names an end-of-sequence token.
    """
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(base_model)
    config = read_config(base_model).get_text_config()
    try:
        eos = GenerationConfig.from_pretrained(base_model).eos_token_id
    except OSError:
        eos = None
    except Exception as error:  # its values can be wrong in any way
        raise UserError(f"cannot read the generation_config.json of {base_model}: {first_line(error)}") from error
    named = [eos] if isinstance(eos, int) else list(eos or ())
    if tokenizer.eos_token_id is not None:
        named.append(tokenizer.eos_token_id)
    if not named:
        raise UserError(f"the base model {base_model} names no end-of-sequence token in its tokenizer")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else named[0]
    context = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return TextCodec(tokenizer, tuple(dict.fromkeys(named)), pad, context)
