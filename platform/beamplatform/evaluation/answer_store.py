"""Stores completions by everything that determines them, so that no evaluation asks the same question again.

A folder (or fsspec URI) holds one folder for each combination of base model, exported model, engine and generation
settings. The name of that folder is the hash of the combination, and its about.json describes the combination. Every
evaluation writes a file of its own there, with one line for each prompt, as soon as the prompt is answered. Answers are
judged anew each time: judging needs no model, and a stored verdict would be wrong once its scoring rule is corrected.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from beamplatform.evaluation.predictions import digest
from beamplatform.io.storage import is_uri, join, list_files, read_text, write_text

_UPLOAD_EVERY = 10.0
"""Seconds between two writes to a URI, where a file can only be written as a whole."""


class StoredAnswers:
    """The stored answers of one combination, by prompt.

    Args:
        location: folder or URI of all combinations; None stores nothing.
        about: everything that determines the answers, including the content of the weights, as plain JSON values.
    """

    def __init__(self, location: str | None, about: Mapping[str, Any]) -> None:
        self._completions: dict[str, list[str]] = {}
        self._folder: str | None = None
        if location is None:
            return
        text = json.dumps(about, sort_keys=True, indent=1)
        self._folder = join(location, digest(text))
        self._about = text
        for file in list_files(self._folder):
            if file.endswith(".jsonl"):
                for line in (read_text(file) or "").split("\n"):
                    with suppress(ValueError):  # the last line is incomplete if its writer was killed
                        prompt, completions = json.loads(line)
                        self._completions[prompt] = completions
        self._part = join(self._folder, f"{uuid.uuid4().hex[:16]}.jsonl")
        self._lines: list[str] = []
        self._uploaded = time.monotonic()
        self._file: TextIO | None = None

    def get(self, prompt: str) -> list[str] | None:
        """Return the stored completions of a prompt; None if there are none."""
        return self._completions.get(digest(prompt))

    def add(self, prompt: str, completions: list[str]) -> None:
        """Store the completions of a prompt; in a folder they are written at once."""
        if self._folder is None:
            return
        line = json.dumps([digest(prompt), completions])
        if is_uri(self._folder):
            self._lines.append(line)
            if time.monotonic() - self._uploaded > _UPLOAD_EVERY:
                self.close()
            return
        if self._file is None:
            self._describe()
            self._file = Path(self._part).open("a", encoding="utf-8")  # noqa: SIM115 (`close` closes it)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Write the answers that are not written yet."""
        if self._folder is not None and self._file is not None:
            self._file.close()
            self._file = None
        elif self._folder is not None and self._lines:
            self._describe()
            write_text(self._part, "\n".join(self._lines) + "\n")
            self._uploaded = time.monotonic()

    def _describe(self) -> None:
        assert self._folder is not None
        write_text(join(self._folder, "about.json"), self._about + "\n")
