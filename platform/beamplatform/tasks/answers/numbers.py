"""Finds numbers in running text, with signs, thousands separators, decimals and fractions."""

from __future__ import annotations

import re
from fractions import Fraction

_UNSIGNED = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(rf"(?P<sign>[-+\u2212])?\s?\$?\s?(?P<minus>[-\u2212])?(?P<number>{_UNSIGNED})")
_FRACTION = re.compile(rf"\s?/\s?(?P<number>{_UNSIGNED})")
_LONGEST = 1000
"""Largest number of characters in a number.

A model that repeats itself writes longer ones, which are no answers, and which Python refuses to print.
"""


_SEPARATORS = re.compile(r"\{,\}|\\[,!]|(?<=[0-9])(?:\\[;: ]|~)(?=[0-9]{3}(?![0-9]))")
"""LaTeX's thousands separators: 9{,}500, 9\\,500, 9\\;500, 9~500, and 9,\\!500, whose comma stays."""
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")


def _plain(text: str) -> str:
    """Return the text with LaTeX's fractions and thousands separators written as in plain text."""
    text = _LATEX_FRACTION.sub(r" \1/\2", text)
    return _SEPARATORS.sub(lambda match: "," if match[0] == "{,}" else "", text)


def first_number(text: str) -> Fraction | None:
    """Return the first number of a text, exactly, such as -3, 1,234.5, .5, $12 or 3/4.

    Returns None if there is no number, or if it is divided by 0.
    """
    text = _plain(text)
    match = _NUMBER.search(text)
    return _value(text, match)[0] if match else None


def last_number(text: str) -> Fraction | None:
    """Return the last number of a text, as `first_number` does.

    A sign after a digit is an operator and not part of the number: 7-3 ends in 3.
    """
    last, end, text = None, 0, _plain(text)
    for match in _NUMBER.finditer(text):
        if match.start() < end:
            continue  # a denominator, which is part of the number before it
        subtracts = match["sign"] is not None and text[: match.start()].rstrip()[-1:].isdigit()
        value, end = _value(text, match)
        last = abs(value) if value is not None and subtracts else value
    return last


def _value(text: str, match: re.Match[str]) -> tuple[Fraction | None, int]:
    """Return the number or fraction that begins with the match, and the position of its end.

    The number is None if it is too long or divided by 0.
    """
    value, end = _exact(match["number"]), match.end()
    if value is None:
        return None, end
    if divisor := _FRACTION.match(text, match.end()):
        denominator, end = _exact(divisor["number"]), divisor.end()
        if not denominator:
            return None, end
        value /= denominator
    negative = (match["sign"] in ("-", "\u2212")) != (match["minus"] is not None)
    return (-value if negative else value), end


def _exact(number: str) -> Fraction | None:
    return Fraction(number.replace(",", "")) if len(number) <= _LONGEST else None
