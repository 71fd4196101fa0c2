"""A small tokenizer of Llama 2's kind: SentencePiece's BPE with bytes, a space before every text, a token before it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def llama2_tokenizer(texts: Iterable[str], *, appends_end: bool = False, normalizer: bool = False) -> Any:
    """Train one on `texts`.

    Args:
        texts: what its vocabulary is made of.
        appends_end: it also puts an end of sequence behind every text, as `add_eos_token` has it.
        normalizer: the space is made by a normalizer, as in the files of Llama 2, not by Metaspace.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    named = ["<unk>", "<s>", "</s>"]
    parts: Any
    if normalizer:
        parts = {"normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])}
    else:
        parts = {"pre_tokenizer": pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)}
    draft = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    for name, part in parts.items():
        setattr(draft, name, part)
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=named + bytes_, show_progress=False)
    draft.train_from_iterator([line for text in texts for line in text.split("\n")], trainer)
    # The trainer takes the bytes for special tokens, which in Llama 2's vocabulary they are not.
    trained = json.loads(draft.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    made = Tokenizer(
        models.BPE(vocab=trained["vocab"], merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    for name, part in parts.items():
        setattr(made, name, part)
    made.add_special_tokens(named)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    template = "<s> $A </s>" if appends_end else "<s> $A"
    made.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
