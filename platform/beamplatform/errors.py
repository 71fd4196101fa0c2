"""The one exception that means "the user's input is wrong", and errors of others in one line."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right.

    The pipelines print the message without a traceback and exit with code 2.
    """


def first_line(error: BaseException) -> str:
    """Of what an error says; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shortened(text: str, most: int = 120) -> str:
    """The text, cut where it is too long for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
