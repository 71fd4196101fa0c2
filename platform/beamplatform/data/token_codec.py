"""From text to token ids and back, the same in training and in evaluation.

Text is text: what looks like a special token in it is split into ordinary tokens. Special tokens are added here alone:
before a prompt those that the tokenizer itself puts before a text (Llama's beginning of sequence), and one end of
sequence after a response. A tokenizer that appends a token of its own to every text does not put it between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from beamplatform.errors import UserError

_PROBE = "a"
_CONTEXT = 8
"""Prompt tokens that a completion is decoded behind."""
_BATCH = 1000
"""Texts that the tokenizer gets at once; its Rust part works on them in parallel."""


class TokenCodec:
    """A tokenizer as this platform uses it.

    Attributes:
        tokenizer: transformers' tokenizer.
        prefix: special tokens before every prompt.
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
        """The end-of-sequence token.

        Raises:
            UserError: the tokenizer names none.
        """
        end: int | None = self.tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"model.path: the tokenizer of {self.tokenizer.name_or_path} names no end-of-sequence token "
                "(eos_token in its tokenizer_config.json), so no answer could ever end"
            )
        return end

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, special tokens before them included."""
        return [self.prefix + ids for ids in self._plain(texts)]

    def responses(
        self, prompts: Sequence[str], prompt_ids: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> list[list[int]]:
        """Token ids of responses with their end of sequence; `decode` makes exactly the same text of them again.

        Args:
            prompts: the text that each response follows.
            prompt_ids: what `prompts` made of it.
            texts: the responses.
        """
        found = self._behind(prompts, prompt_ids, texts) if self._adds_space else self._plain(texts)
        end = self.end
        return [[*ids, end] for ids in found]

    def decode(self, prompt: Sequence[int], completion: Sequence[int]) -> str:
        """The text of a completion, without special tokens.

        It is decoded behind the prompt's last tokens: SentencePiece's tokenizers drop the space that the first token of
        a text begins with, which in a program is a column of its first line.
        """
        before = list(prompt[-_CONTEXT:])
        context = self._text(before)
        whole = self._text([*before, *completion])
        return whole[len(context) :] if whole.startswith(context) else self._text(completion)

    @cached_property
    def _adds_space(self) -> bool:
        """Whether a text tokenised alone begins with a space that it does not have (Llama 2's tokenizer)."""
        prompt, response = self._plain(["a\n", _PROBE])
        return self.decode(prompt, response) != _PROBE

    def _behind(
        self, prompts: Sequence[str], prompt_ids: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> list[list[int]]:
        """Token ids of texts that are tokenised together with the prompt before them."""
        whole = self._plain([prompt + text for prompt, text in zip(prompts, texts, strict=True)])
        alone = self._plain(texts)
        found = []
        for ids, prompt, own in zip(whole, prompt_ids, alone, strict=True):
            plain = list(prompt[len(self.prefix) :])
            # Where a token spans the border, the prompt keeps its own tokens: the model will be asked with them.
            found.append(ids[len(plain) :] if ids[: len(plain)] == plain else own)
        return found

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = []
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            found += self.tokenizer(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return found

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
