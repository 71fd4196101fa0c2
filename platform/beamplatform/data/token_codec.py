"""Converts text to token ids and back, in the same way for training and evaluation.

Text that looks like a special token is split into ordinary tokens. Special tokens are added only here. A prompt is
preceded by the special tokens that the tokenizer itself puts before a text, such as Llama's beginning of sequence. A
response is followed by one end-of-sequence token. If a tokenizer appends a special token to every text, that token is
not put between prompt and response.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from beamplatform.errors import UserError

_PROBE = "a"
_CONTEXT = 8
"""Number of prompt tokens that are decoded together with a completion."""
_BATCH = 1000
"""Number of texts that the tokenizer gets at once; its Rust part works on them in parallel."""


class TokenCodec:
    """Encodes prompts and responses, and decodes completions.

    Attributes:
        tokenizer: transformers' tokenizer.
        prefix: ids of the special tokens before every prompt.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def prefix(self) -> list[int]:
        plain = self._plain([_PROBE])[0]
        whole: list[int] = self.tokenizer(_PROBE)["input_ids"]
        starts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
        return whole[: next(starts, 0)]

    @property
    def end(self) -> int:
        """Id of the end-of-sequence token.

        Raises:
            UserError: the tokenizer has no end-of-sequence token.
        """
        end: int | None = self.tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"model.path: the tokenizer of {self.tokenizer.name_or_path} names no end-of-sequence token "
                "(eos_token in its tokenizer_config.json), so no answer could ever end"
            )
        return end

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of prompts, including the special tokens before them."""
        return [self.prefix + ids for ids in self._plain(texts)]

    def responses(
        self, prompts: Sequence[str], prompt_ids: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> list[list[int]]:
        """Return the token ids of responses, including the end-of-sequence token.

        `decode` turns them back into exactly the same text.

        Args:
            prompts: the text of the prompt before each response.
            prompt_ids: the token ids that the method `prompts` returned for these prompts.
            texts: the responses.
        """
        token_ids = self._behind(prompts, prompt_ids, texts) if self._adds_space else self._plain(texts)
        end = self.end
        return [[*ids, end] for ids in token_ids]

    def decode(self, prompt: Sequence[int], completion: Sequence[int]) -> str:
        """Return the text of a completion, without special tokens.

        The completion is decoded together with the prompt's last tokens. Decoded alone, it could lose a space:
        SentencePiece's tokenizers drop the space at the beginning of the first token, which in a program is part of the
        first line's indentation.
        """
        before = list(prompt[-_CONTEXT:])
        context = self._text(before)
        whole = self._text([*before, *completion])
        return whole[len(context) :] if whole.startswith(context) else self._text(completion)

    @cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer adds a space before a text that it gets alone, as Llama 2's does."""
        prompt, response = self._plain(["a\n", _PROBE])
        return self.decode(prompt, response) != _PROBE

    def _behind(
        self, prompts: Sequence[str], prompt_ids: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> list[list[int]]:
        """Return the token ids of texts, each tokenised together with the prompt before it."""
        whole = self._plain([prompt + text for prompt, text in zip(prompts, texts, strict=True)])
        alone = self._plain(texts)
        token_ids = []
        for ids, prompt, text_ids in zip(whole, prompt_ids, alone, strict=True):
            plain = list(prompt[len(self.prefix) :])
            # If a token spans the boundary, the text is tokenised alone instead, so that the prompt keeps exactly the
            # tokens with which the model will be asked.
            token_ids.append(ids[len(plain) :] if ids[: len(plain)] == plain else text_ids)
        return token_ids

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        token_ids: list[list[int]] = []
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            token_ids += self.tokenizer(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return token_ids

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
