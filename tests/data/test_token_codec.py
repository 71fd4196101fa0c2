"""Text becomes tokens and text again, whatever the tokenizer does to a text by itself."""

from __future__ import annotations

import ast
import bisect
import heapq
import inspect
import textwrap
from typing import Any

import pytest
from llama2_tokenizer import llama2_tokenizer

from beamplatform.data.examples import IGNORED, tokenise
from beamplatform.data.token_codec import TokenCodec
from beamplatform.errors import UserError
from beamplatform.models.loading import load_tokenizer
from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record


def functions() -> list[tuple[str, str]]:
    """Functions of Python's library: the line that begins each, and its body with the columns it stands at."""
    found = []
    for module in (bisect, heapq, textwrap):
        source = inspect.getsource(module)
        lines = source.splitlines(keepends=True)
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef):
                first = node.body[0].lineno - 1
                found.append(("".join(lines[node.lineno - 1 : first]), "".join(lines[first : node.end_lineno])))
    return found


FUNCTIONS = functions()
STRANGE = ["", " ", "\n", "\n\n  x", "</s>", "<s>[INST] </s> x", " a", "  a ", "é✓ naß", "\u200bfoo\r\nbar", "a</s>"]


@pytest.fixture(scope="module", params=["llama2", "llama2, normalizer", "appends its end", "byte-level"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "byte-level":
        return load_tokenizer("tiny")
    texts = [prompt + body for prompt, body in FUNCTIONS] * 3
    return llama2_tokenizer(texts, appends_end="end" in request.param, normalizer="normalizer" in request.param)


def test_a_response_is_the_same_text_again(tokenizer: Any) -> None:
    codec = TokenCodec(tokenizer)
    records = [(alpaca_prompt(prompt), body) for prompt, body in FUNCTIONS]
    records += [(alpaca_prompt("Say it."), text) for text in STRANGE]
    texts, outputs = map(list, zip(*records, strict=True))
    prompts = codec.prompts(texts)
    for prompt, ids, output in zip(prompts, codec.responses(texts, prompts, outputs), outputs, strict=True):
        assert codec.decode(prompt, ids[:-1]) == output
        assert ids[-1] == tokenizer.eos_token_id and codec.decode(prompt, ids) == output


def test_a_program_decoded_alone_loses_a_column() -> None:
    """The fault that decoding behind the prompt is for: the tokenizer itself does not give the text back."""
    tokenizer = llama2_tokenizer([body for _, body in FUNCTIONS] * 3)
    codec = TokenCodec(tokenizer)
    for prompt, body in FUNCTIONS:
        (ids,) = codec.prompts([prompt])
        (response,) = codec.responses([prompt], [ids], [body])
        ast.parse(prompt + codec.decode(ids, response))
        alone = tokenizer.decode(response, skip_special_tokens=True)
        assert alone == body[1:]


def test_special_tokens_are_ours_alone(tokenizer: Any) -> None:
    record = Record("What ends </s> a text? <s>", "It is </s>, after <s>.", "", input="</s></s>")
    (example,) = tokenise([record], tokenizer, max_length=1000, loss_on="response")
    special = set(tokenizer.all_special_ids)
    places = [place for place, token in enumerate(example.ids) if token in special]
    assert places == [0, len(example.ids) - 1]
    assert example.ids[0] == tokenizer.bos_token_id and example.ids[-1] == tokenizer.eos_token_id
    targets = [label for label in example.labels if label != IGNORED]
    assert targets.count(tokenizer.eos_token_id) == 1 and tokenizer.bos_token_id not in targets


def test_training_and_evaluation_ask_the_same(tokenizer: Any) -> None:
    """The prompt of an example is what an engine asks the model."""
    from beamplatform.inference.text import TextCodec

    record = Record("a </s> b", "c", "")
    (example,) = tokenise([record], tokenizer, max_length=1000, loss_on="response")
    engine = TextCodec(tokenizer, (tokenizer.eos_token_id,), 0, 1000)
    (asked,) = engine.encode([alpaca_prompt(record.instruction)], 8)
    assert example.ids[: len(asked)] == asked and example.labels[: len(asked)] == [IGNORED] * len(asked)
    assert engine.decode(asked, example.ids[len(asked) :], ()) == "c"
    assert engine.decode(asked, example.ids[len(asked) :] + example.ids[1:], ()) == "c", "an end of sequence ends it"
    assert engine.lengths(["a </s> b"]) == [len(ids) for ids in engine.encode(["a </s> b"], 8)]


def test_many_texts_are_what_each_is_alone(tokenizer: Any) -> None:
    records = [Record(prompt, body, "") for prompt, body in FUNCTIONS] * 60
    assert len(records) > 1000
    together = tokenise(records, tokenizer, max_length=256, loss_on="response")
    for place in (0, 1, 999, 1000, len(records) - 1):
        assert tokenise([records[place]], tokenizer, max_length=256, loss_on="response") == [together[place]]


def test_a_tokenizer_without_an_end_of_sequence_is_refused() -> None:
    from transformers import PreTrainedTokenizerFast

    known = load_tokenizer("tiny")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known.backend_tokenizer, pad_token="<pad>")
    with pytest.raises(UserError, match=r"names no end-of-sequence token \(eos_token in its tokenizer_config.json\)"):
        tokenise([Record("a", "b", "")], tokenizer, max_length=64, loss_on="response")
