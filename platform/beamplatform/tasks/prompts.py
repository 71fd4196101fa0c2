"""The prompt templates, the same for training and for evaluation."""

from __future__ import annotations

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n"
    "### Response:\n"
)
"""Stanford Alpaca's template for an instruction without input."""

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n"
    "### Response:\n"
)
"""Stanford Alpaca's template for an instruction with an input."""


def alpaca_prompt(instruction: str, input: str = "") -> str:
    """Return the prompt for `instruction`; it ends in "### Response:" and a newline.

    LLM-Adapters uses two versions that differ from each other in stray spaces, one to train and one to
    evaluate. A model is scored here on exactly the text it was trained on.

    Args:
        instruction: what is asked; kept as it is, curly braces and outer whitespace included.
        input: further text the instruction refers to. Empty in all of the commonsense records.
    """
    if input:
        return ALPACA_WITH_INPUT.format(instruction=instruction, input=input)
    return ALPACA.format(instruction=instruction)
