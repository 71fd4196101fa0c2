"""Conversion of prompts to token ids and of token ids to text, the same for every engine."""

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
    """A base model's tokenizer, with the token ids and the context length that generation needs.

    Attributes:
        tokenizer: transformers' tokenizer of the base model.
        eos_token_ids: ids of the tokens that end a completion.
        pad_token_id: id of the token that fills up shorter sequences; the attention mask hides it.
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
        """The number of tokens in every prompt."""
        return [len(ids) for ids in self._tokens.prompts(prompts)]

    def decode(self, prompt: Sequence[int], completion: Sequence[int], stop: Sequence[str]) -> str:
        """Return a completion's text up to the first end-of-sequence token or `stop` text, without it.

        Args:
            prompt: the token ids that the completion follows.
            completion: the token ids of the completion.
            stop: texts that end the completion.
        """
        end = next((i for i, token in enumerate(completion) if token in self.eos_token_ids), len(completion))
        text = self._tokens.decode(prompt, completion[:end])
        return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def load_codec(base_model: str) -> TextCodec:
    """Read the tokenizer, the generation config and the context length of a base model.

    Raises:
        UserError: a file cannot be read, or none names an end-of-sequence token.
    """
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(base_model)
    config = read_config(base_model).get_text_config()
    try:
        eos = GenerationConfig.from_pretrained(base_model).eos_token_id
    except OSError:
        eos = None
    except Exception as error:  # the file's values can be wrong in any way
        raise UserError(f"cannot read the generation_config.json of {base_model}: {first_line(error)}") from error
    eos_ids = [eos] if isinstance(eos, int) else list(eos or ())
    if tokenizer.eos_token_id is not None:
        eos_ids.append(tokenizer.eos_token_id)
    if not eos_ids:
        raise UserError(f"the base model {base_model} names no end-of-sequence token in its tokenizer")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    context = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return TextCodec(tokenizer, tuple(dict.fromkeys(eos_ids)), pad, context)
