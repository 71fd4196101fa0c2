"""Finding and comparing answers: hard cases by hand, properties, and the real data sets' own gold answers."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamplatform.data.records import load_records
from beamplatform.tasks import TASKS
from beamplatform.tasks.answers.latex import bare, last_boxed, normal_form
from beamplatform.tasks.answers.numbers import first_number, last_number
from beamplatform.tasks.record import Record

# --- numbers ------------------------------------------------------------------------------------------------

FIRST = [
    ("18", 18), ("-3", -3), ("+4", 4), ("\u22125", -5), ("1,234", 1234), ("1,234,567", 1234567), ("12,34", 12),
    ("1234,567", 1234), ("3.50", Fraction(7, 2)), (".5", Fraction(1, 2)), ("-.25", Fraction(-1, 4)), ("7.", 7),
    ("$12", 12), ("$1,080.50", Fraction(2161, 2)), ("-$5", -5), ("$-5", -5), ("- 5", -5), ("5%", 5), ("50 %", 50),
    ("3/4", Fraction(3, 4)), ("-3/4", Fraction(-3, 4)), ("6 / 4", Fraction(3, 2)), ("1/0", None), ("0/5", 0),
    ("1,000/3", Fraction(1000, 3)), ("12 apples", 12), ("about 3 or 4", 3), ("(7)", 7), ("x = 9", 9), ("9x", 9),
    ("5-3", 5), ("1e3", 1), ("", None), ("none", None), (".", None), ("-", None), ("$", None), (",5", 5),
    ("18.00", 18), ("007", 7), ("1,23,456", 1), ("2:30", 2), ("3 1/2", 3), ("\n\n42\n", 42), ("**64**", 64),
    ("\\boxed{64}", 64), ("72 km/h", 72), ("10^3", 10), ("1.2.3", Fraction(6, 5)), ("\u0665", None),
    ("9" * 5000, None), ("1/" + "9" * 5000, None),
    ("9{,}500", 9500), ("\\$9{,}500.25", Fraction(38001, 4)), ("9,\\!500", 9500), ("9\\,500", 9500),
    ("9\\;500", 9500), ("9\\ 500", 9500), ("9~500", 9500), ("5\\;12", 5), ("5\\ 1000", 5),
    ("-\\frac{3}{4}", Fraction(-3, 4)), ("\\dfrac{1}{2}", Fraction(1, 2)), ("\\frac{x}{2}", 2),
    ("1{,}234{,}567", 1234567),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FIRST)
def test_first_number(text: str, expected: Fraction | int | None) -> None:
    assert first_number(text) == expected


LAST = [
    ("72 / 4 = 18 muffins", 18), ("7-3", 3), ("7 - 3 = 4. The answer is 4.", 4),
    ("costs $1,299.99.", Fraction(129999, 100)),
    ("-2", -2), ("it fell to -2", -2), ("it fell to -2 degrees", -2), ("3/4", Fraction(3, 4)),
    ("so 1/3 of 6/4", Fraction(3, 2)),
    ("1.5 and 2.25 ounces", Fraction(9, 4)), ("100%", 100), ("", None), ("no number", None), ("12,000 people", 12000),
    ("3 of 9{,}500", 9500), ("from 5 to 10", 10), ("(5, 7)", 7), ("answer: 8/0", None), ("2021-05", 5),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), LAST)
def test_last_number(text: str, expected: Fraction | int | None) -> None:
    assert last_number(text) == expected


@given(st.integers(-(10**12), 10**12))
def test_numbers_are_read_as_they_are_written(number: int) -> None:
    for written in (f"{number}", f"{number:,}", f"${number}", f"it is {number}.00 in all", f"{number}\n"):
        assert first_number(written) == number, written
        assert last_number(written) == number, written


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    first_number(text)
    last_number(text)
    assert normal_form(normal_form(text)) == normal_form(normal_form(normal_form(text)))
    last_boxed(text)
    assert bare(bare(text)) == bare(text)
    record = Record("q", "o", '{"names": ["f"]}')
    for task in TASKS.values():
        task.answer_in(text, record)


# --- LaTeX --------------------------------------------------------------------------------------------------

EQUAL = [
    ("\\frac{1}{2}", "\\dfrac{1}{2}"), ("\\frac12", "\\frac{1}{2}"), ("\\tfrac{3}{4}", "\\frac34"),
    ("1/2", "\\frac{1}{2}"),
    ("0.5", "\\frac{1}{2}"), (".5", "0.5"), ("\\frac1{72}", "\\frac{1}{72}"), ("\\frac{1}2", "\\frac{1}{2}"),
    ("-\\frac{24}{25}", "-\\frac{24}{25} "), ("\\frac ab", "\\frac{a}{b}"), ("3/4", "\\frac{3}{4}"),
    ("-3/4", "\\frac{-3}{4}"),
    ("50\\%", "50"), ("50%", "50"), ("\\$18", "18"), ("90^\\circ", "90"), ("90^{\\circ}", "90"),
    ("12\\text{ cm}", "12"),
    ("12 \\text{ square feet}", "12"), ("5\\mbox{ inches}", "5"), ("\\sqrt3", "\\sqrt{3}"), ("2\\sqrt 5", "2\\sqrt{5}"),
    ("x = 5", "5"), ("k=5", "5"), ("x=5", "y=5"), ("\\left(1, 2\\right)", "(1,2)"), ("(1,2)", "( 1 , 2 )"),
    ("\\left[ 0, 1 \\right)", "[0,1)"), ("(-\\infty, 3]", "(-\\infty,3]"), ("1 + 2i", "1+2i"), ("x^2 + 1", "x^2+1"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\\\\\ 2 \\end{pmatrix}"),
    ("10\\!,\\!000", "10,000"), ("\\text{(E)}", "\\text{(E)}"), ("\\text{June 20}", "\\text{June20}"),
    ("1,\\ .5", "1,\\ 0.5"),
    ("\\{1, 2\\}", "\\{1,2\\}"), ("{.5}", "{0.5}"), ("a\nb", "ab"), ("2\\frac{1}{2}", "2\\frac12"), ("", ""),
]  # fmt: skip
DIFFERENT = [
    ("\\frac{1}{2}", "\\frac{2}{1}"), ("0.25", "\\frac{1}{4}"), ("1", "2"), ("(1,2)", "(2,1)"), ("[0,1)", "[0,1]"),
    ("(0,1)", "[0,1]"), ("\\sqrt{3}", "\\sqrt{5}"), ("\\sqrt[3]{2}", "\\sqrt{2}"), ("-1", "1"), ("x^2", "x^3"),
    ("\\text{(A)}", "\\text{(B)}"), ("10", "100"), ("1,000", "1"), ("1.5", "15"), ("\\pi", "\\pi r"), ("abc=5", "5"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"), ("5", ""),
    ("\\frac{1}{", "\\frac{1}{2}"),
    ("\\emptyset", "0"), ("x", "X"), ("1/2/3", "\\frac{1}{2}"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_answers(one: str, other: str) -> None:
    assert normal_form(one) == normal_form(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_answers(one: str, other: str) -> None:
    assert normal_form(one) != normal_form(other)


BOXED = [
    ("so \\boxed{5}.", "5"), ("\\boxed{1} and \\boxed{2}", "2"), ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"), ("\\fbox{7}", "7"), ("\\boxed 5", "5"), ("\\boxed 5$ it is", "5"),
    ("\\boxed{\\text{(E)}}", "\\text{(E)}"), ("\\boxed{unfinished", None), ("\\boxed{a{b}", None), ("\\boxed", None),
    ("nothing", None), ("", None), ("\\boxed{}", ""), ("\\boxed {3}", "3"), ("\\boxed{ 4 }", " 4 "),
]  # fmt: skip


@pytest.mark.parametrize(("solution", "expected"), BOXED)
def test_last_boxed(solution: str, expected: str | None) -> None:
    assert last_boxed(solution) == expected


def test_there_are_as_many_hard_cases_as_promised() -> None:
    assert len(FIRST) + len(LAST) + len(EQUAL) + len(DIFFERENT) + len(BOXED) + len(COMPLETIONS) >= 120


# --- whole completions --------------------------------------------------------------------------------------

COMPLETIONS = [
    ("gsm8k", "18", "9 * 2 = 18. The answer is: 18", True), ("gsm8k", "18", "The answer is: 18.", True),
    ("gsm8k", "18", "The answer is: $18.00 per day", True), ("gsm8k", "18", "It makes 18 dollars.", False),
    ("gsm8k", "18", "The answer is 18", False), ("gsm8k", "1080", "The answer is: 1,080", True),
    ("gsm8k", "18", "", False),
    ("gsm8k", "18", "The answer is: 17. No. The answer is: 18", True), ("gsm8k", "18", "The answer is: ", False),
    ("gsm8k", "18", "The answer is: 18 The answer is: 17", False), ("gsm8k", "1", "The answer is: 3/4", True),
    ("gsm8k", "-3", "The answer is: -3", True), ("gsm8k", "18", "The answer is: eighteen", False),
    ("gsm8k", "5", "The answer is: 1/0", False), ("gsm8k", "18", "The answer is: 180", False),
    ("MATH", "\\frac{1}{2}", "The answer is: \\frac12.", True), ("MATH", "2", "The answer is: 2.\nThat is all.", True),
    ("MATH", "$2$", "The answer is: 2", True), ("MATH", "\\boxed{2}", "The answer is: 2", True),
    ("MATH", "2", "The answer is: $2$", True), ("MATH", "2", "The answer is: \\(\\boxed{2}\\).", True),
    ("MATH", "\\boxed{\\frac{1}{2}}", "The answer is: $\\dfrac12$", True), ("MATH", "$2$", "The answer is: $3$", False),
    ("MATH", "$1$ or $2$", "The answer is: $1$ or $2$", True), ("MATH", "$1$ or $2$", "The answer is: 1$ or $2", False),
    ("gsm8k", "9500", "The answer is: 9{,}500", True), ("gsm8k", "9500", "The answer is: $9,\\!500$", True),
    ("MATH", "2", "Thus \\boxed{2}.", False), ("MATH", "50", "The answer is: 50\\%", True),
    ("MATH", "2", "The answer is: ", False),
    ("MATH", "(1,2)", "The answer is: \\left( 1, 2 \\right)", True),
    ("MATH", "\\frac{1}{2}", "The answer is: \\frac{1}{", False),
    ("MATH", "5", "The answer is: 4. The answer is: 5", True), ("MATH", "3.5", "The answer is: 3.5", True),
    ("AQuA", "D", "\nA: so it is $1.23.The answer is (D).", True), ("AQuA", "D", "The answer is D", True),
    ("AQuA", "D", "Between (A) and (D): (D)", True), ("AQuA", "D", "A day", False),
    ("AQuA", "A", "answer is Apple (B)", False),
    ("SVAMP", "8.0", "32 / 4 = 8", True), ("SVAMP", "8.0", "8 of 9", False),
    ("mawps", "1.8333333333333335", "1.8333", True),
    ("AddSub", "0.3333333333333333", "1/3 cup", True), ("MultiArith", "15.0", "The answer is 15.", True),
    ("openbookqa", "answer1", "answer10", True), ("openbookqa", "answer1", "Answer1", False),
    ("openbookqa", "answer1", "", False),
    ("boolq", "true", "the correct answer is true, not false", True), ("boolq", "false", "true or false", False),
    ("piqa", "solution2", "solution 2", False), ("hellaswag", "ending3", "It is ending3 (not ending1)", True),
]  # fmt: skip


BARE = [
    ("$x$", "x"), ("\\boxed{x}", "x"), ("$\\boxed{x}$", "x"), ("\\boxed{$x$}", "x"), ("\\(x\\)", "x"),
    ("\\[ x \\]", "x"), ("$$x$$", "x"),
    ("\\boxed{a}+\\boxed{b}", "\\boxed{a}+\\boxed{b}"), ("$a$ and $b$", "$a$ and $b$"), ("\\$5", "\\$5"),
    ("$5\\$", "$5\\$"), ("$", "$"),
    ("$$", "$$"), ("", ""), (" 5 ", "5"), ("\\(a\\) and \\(b\\)", "\\(a\\) and \\(b\\)"), ("\\boxed{}", ""),
    ("\\fbox{5}", "5"), ("\\boxed{\\boxed{x}}", "x"), ("\\boxed{{x}}", "{x}"), ("\\boxed{x", "\\boxed{x"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "expected"), BARE)
def test_what_only_sets_an_answer_off_is_no_part_of_it(answer: str, expected: str) -> None:
    assert bare(answer) == expected


@pytest.mark.parametrize(("task", "gold", "completion", "expected"), COMPLETIONS)
def test_whole_completions(task: str, gold: str, completion: str, expected: bool) -> None:
    found = TASKS[task].extract(completion)
    record = Record("q", "o", gold)
    assert (found is not None and TASKS[task].correct(found, record)) is expected


# --- the real data ------------------------------------------------------------------------------------------


def real(task: str, folder: Path) -> list[Record]:
    return load_records(task, "test", str(folder), files=TASKS[task].files, parse=TASKS[task].parse)


@pytest.mark.parametrize(
    ("task", "count"),
    [("gsm8k", 1319), ("MATH", 5000), ("AQuA", 254), ("AddSub", 395), ("MultiArith", 600), ("SVAMP", 1000),
     ("SingleEq", 508), ("mawps", 238)],
)  # fmt: skip
def test_the_gold_solutions_score_everything(task: str, count: int, shared_data: Path) -> None:
    records = real(task, shared_data / "math" / ("llm_adapters" if task not in ("gsm8k", "MATH") else ""))
    assert len(records) == count
    for record in records:
        marked = f"The answer is: {record.answer}" if task in ("gsm8k", "MATH") else f"The answer is {record.answer}"
        solution = re.sub(r"#### .*", "", record.output) if task == "gsm8k" else record.output
        found = TASKS[task].extract(f"{solution}\n{marked}.")
        assert found is not None and TASKS[task].correct(found, record), record.answer


def test_every_boxed_answer_equals_itself_and_no_other(shared_data: Path) -> None:
    """Each equals its own normal form, which is its own; and a wrong answer is not taken for it."""
    answers = [record.answer for record in real("MATH", shared_data / "math")]
    forms = {normal_form(answer) for answer in answers}
    assert all(form and normal_form(form) == form for form in forms)
    plain = [answer for answer in answers if answer[-1:].isalnum() and "text" not in answer and "mbox" not in answer]
    assert not any(TASKS["MATH"].correct(f"{answer}1", Record("q", "o", answer)) for answer in plain)
    assert len(plain) > 3000 and len(forms) > 1500
