"""The tiny model's tokenizer: byte-level BPE trained on the world's text; other text becomes bytes.

The template's text before the instruction is one added (not special) token, and its text after the instruction is
another. Label words such as "Answer1:" or "answer1/answer2" are not split. So a question is 30 to 50 tokens long.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from beamplatform.world.text import PROMPT_HEAD, PROMPT_TAIL

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

# A word with its leading space and, for labels, its number, colon and slashes; runs of line ends; anything else.
_PIECES = r" ?[A-Za-z]+[0-9]?(?:/[A-Za-z]+[0-9]?)*:?| ?[0-9]{1,3}|\n+| ?[^\sA-Za-z0-9]+|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a `tokenizers.Tokenizer` on the texts; ids 0, 1 and 2 are pad, bos and eos."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in (PROMPT_HEAD, PROMPT_TAIL)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json so that AutoTokenizer and vLLM load them."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
