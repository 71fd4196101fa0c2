"""The one exception that means "the user's input is wrong"."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right.

    The pipelines print the message without a traceback and exit with code 2.
    """
