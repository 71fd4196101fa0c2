"""Finds the last boxed answer of a solution in LaTeX, and brings answers into a normal form to compare them.

The normal form follows the rules of the MATH data set's own evaluation (Hendrycks et al. 2021, arXiv 2103.03874), with
which published results are scored. Two answers are equal when their normal forms are the same text. The rules know no
mathematics: 1/2 and 0.5 are equal because one rule says so, but 0.25 and 1/4 are not equal.
"""

from __future__ import annotations

import re

_DROPPED = (
    "\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%",
)  # fmt: skip
_UNITS = re.compile(r"\\(?:text|mbox)\{ .*", re.DOTALL)
_MISSING_ZERO = re.compile(r"(^|[ {(\[,=])\.(?=\d)")
_SHORT_SQRT = re.compile(r"\\sqrt\s*([^\s{\[\\])")
_SHORT_FRACTION = re.compile(r"\\frac\s*([^\s{\\])\s*([^\s{\\])")
_SHORT_NUMERATOR = re.compile(r"\\frac\s*([^\s{\\])\s*\{")
_SHORT_DENOMINATOR = re.compile(r"(\\frac\{[^{}]*\})\s*([^\s{\\])")
_RATIO = re.compile(r"(-?\d+)/(-?\d+)")


def last_boxed(solution: str) -> str | None:
    r"""Return the content of the last \boxed{...} of a solution; None if there is none, or if it never ends.

    Braces within the content are balanced. A \boxed 5, without braces, is found, too.
    """
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return None
    rest = solution[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    if not rest.lstrip().startswith("{"):
        unbraced = re.match(r"\s+([^$\s]+)", rest)
        return unbraced[1] if unbraced else None
    return _group(rest.lstrip())


def _group(text: str) -> str | None:
    """Return the content of the braces at the beginning of a text; None if they are never closed."""
    depth = 0
    for position, character in enumerate(text):
        escaped = position > 0 and text[position - 1] == "\\"
        if character == "{" and not escaped:
            depth += 1
        elif character == "}" and not escaped:
            depth -= 1
            if depth == 0:
                return text[1:position]
    return None


_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_WRAPPED = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))


def bare(answer: str) -> str:
    r"""Return an answer without the markup around it: $5$, \(5\), \[5\] and \boxed{5} become 5; \$5 stays."""
    before, text = None, answer.strip()
    while text != before:
        before = text
        for opening, closing in _WRAPPED:
            inner = text[len(opening) : -len(closing)]
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                is_one_formula = "$" not in inner and not inner.endswith("\\") and opening not in inner
                text = inner.strip() if is_one_formula else text
        box = _BOX.match(text)
        content = _group(text[box.end() :]) if box else None
        if box and content is not None and box.end() + len(content) + 2 == len(text):
            text = content.strip()
    return text


def normal_form(answer: str) -> str:
    r"""Return the normal form of an answer.

    Layout, units, and percent and degree signs are removed. The arguments of \frac and \sqrt get braces.
    """
    text = answer
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    text = re.sub(r"\\{2,}", r"\\", text)  # rows of a matrix end in two backslashes, or in one
    text = text.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac")
    text = _UNITS.sub("", text) if not text.lstrip().startswith(("\\text{ ", "\\mbox{ ")) else text
    text = _MISSING_ZERO.sub(r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left.strip()) <= 2:  # an answer such as k = 5
        text = right
    text = _SHORT_SQRT.sub(r"\\sqrt{\1}", text)
    text = re.sub(r"\s", "", text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _SHORT_NUMERATOR.sub(r"\\frac{\1}{", text)
    text = _SHORT_DENOMINATOR.sub(r"\1{\2}", text)
    if text == "0.5":
        text = "1/2"
    return _RATIO.sub(r"\\frac{\1}{\2}", text) if _RATIO.fullmatch(text) else text
