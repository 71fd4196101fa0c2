"""The exception that means "the user's input is wrong", and helpers that shorten the texts of errors."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right.

    The pipelines print the message without a traceback and exit with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shortened(text: str, most: int = 120) -> str:
    """The text, cut to `most` characters if it is longer."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
