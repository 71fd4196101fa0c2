"""Completions, kept by what they were made of: what was asked before is not asked again, by whomever.

A folder (or fsspec URI) holds a folder for each combination of base model, exported model, engine and generation
settings, named by the hash of all these and described by its about.json. In it every evaluation writes a file of its
own, a line for each prompt, as soon as it is answered. Answers are judged anew each time: that takes no model, and a
rule that was mended must not meet old verdicts.
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
"""Seconds between two writes to a URI, where a file can only be written whole."""


class Answers:
    """The answers of one combination, by prompt.

    Args:
        location: of all combinations, a folder or URI; None keeps nothing.
        about: what the answers are made of, down to the content of the weights; plain JSON values.
    """

    def __init__(self, location: str | None, about: Mapping[str, Any]) -> None:
        self._found: dict[str, list[str]] = {}
        self._folder: str | None = None
        if location is None:
            return
        text = json.dumps(about, sort_keys=True, indent=1)
        self._folder = join(location, digest(text))
        self._about = text
        for file in list_files(self._folder):
            if file.endswith(".jsonl"):
                for line in (read_text(file) or "").split("\n"):
                    with suppress(ValueError):  # the last line of a file whose writer was killed
                        prompt, completions = json.loads(line)
                        self._found[prompt] = completions
        self._part = join(self._folder, f"{uuid.uuid4().hex[:16]}.jsonl")
        self._lines: list[str] = []
        self._uploaded = time.monotonic()
        self._file: TextIO | None = None

    def get(self, prompt: str) -> list[str] | None:
        """What was answered before; None where nothing was."""
        return self._found.get(digest(prompt))

    def add(self, prompt: str, completions: list[str]) -> None:
        """Keep an answer; in a folder at once."""
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
        """Write what is not written yet."""
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
