"""Runs programs that a model wrote, and treats them as hostile.

A program runs in a bubblewrap sandbox of its own (`bubblewrap.py`, `candidate.py`). Its tests run in another sandbox
(`judge.py`), which calls the program's functions over a pipe and gets plain values back (`wire.py`). So a program can
neither read its tests, nor end them early, nor report their result. Only what its functions return counts.
"""

from beamplatform.sandbox.bubblewrap import Limits, find_bubblewrap
from beamplatform.sandbox.check import Verdict, check_program

__all__ = ["Limits", "Verdict", "check_program", "find_bubblewrap"]
