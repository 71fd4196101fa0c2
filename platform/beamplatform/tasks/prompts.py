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

    LLM-Adapters trains with one version of the template and evaluates with another, and the two differ in stray
    spaces. Here a model is evaluated with exactly the prompt that it was trained with.

    Args:
        instruction: the question or task. It is not changed, not even curly braces and outer whitespace.
        input: further text that the instruction refers to. It is empty in all commonsense records.
    """
    if input:
        return ALPACA_WITH_INPUT.format(instruction=instruction, input=input)
    return ALPACA.format(instruction=instruction)
