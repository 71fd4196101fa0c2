"""The version of the code that decides what comes out of a trial."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from beamplatform.config.normal_form import statements
from beamplatform.io.disk_cache import cached_json

PARTS = (
    "beamlora",
    "beamplatform.baselines",
    "beamplatform.config.trial",
    "beamplatform.data",
    "beamplatform.evaluation.answer_store",
    "beamplatform.evaluation.evaluate",
    "beamplatform.evaluation.evaluator",
    "beamplatform.evaluation.predictions",
    "beamplatform.evaluation.scores",
    "beamplatform.hardware",
    "beamplatform.inference",
    "beamplatform.methods",
    "beamplatform.models.loading",
    "beamplatform.sandbox",
    "beamplatform.tasks",
    "beamplatform.training",
    "beamplatform.world",
)
"""Packages and modules that train, generate and score. A report, tracking, and the search change nothing in a trial."""


def code_version(tasks: Sequence[str] = ()) -> str:
    """Eight hex digits of the sources of beamlora, of what trains and scores here, and of task files of the user's own.

    What counts is what the sources do (`config/normal_form.py`), not how their files are called: a finished trial stays
    finished when a docstring is mended or a file moves. It is not the commit: most commits change no number, and
    an installed package has none.

    Args:
        tasks: as a suite names them; those that are files count.

    Raises:
        FileNotFoundError: a part of the code is not where its name says.
    """
    own = [Path(task).read_bytes() for task in tasks if task.endswith(".py")]
    return version_of([file.read_bytes() for part in PARTS for file in sources(part)], own)


def version_of(parts: Sequence[bytes], tasks: Sequence[bytes] = ()) -> str:
    """Eight hex digits of source texts: of the code's, in any order, and of tasks' in theirs."""
    texts = [hashlib.sha256(text).hexdigest() for text in sorted(parts)]
    code = cached_json(
        "code", (texts, _METHOD), lambda: _digest(sorted({one for text in parts for one in statements(_text(text))}))
    )
    return _digest([code, *(_digest(_statements_of_task(text)) for text in tasks)])[:8]


_METHOD = hashlib.sha256(Path(__file__).with_name("normal_form.py").read_bytes()).hexdigest()
"""Where the normal form changes, what is known by the old one does not count."""


def sources(part: str) -> Iterator[Path]:
    """The files of a part of the code.

    Raises:
        FileNotFoundError: there is none; names the part.
    """
    package, _, inner = part.partition(".")
    spec = importlib.util.find_spec(package)  # not imported: that takes seconds
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{part}: this part of the code, which decides results, is not installed")
    place = Path(spec.origin).resolve().parent.joinpath(*inner.split("."))
    module = place.with_name(f"{place.name}.py")
    files = sorted(place.rglob("*.py")) if place.is_dir() else [module] if inner and module.is_file() else []
    if not files:
        raise FileNotFoundError(f"{part}: this part of the code, which decides results, is not at {place}")
    yield from files


def _statements_of_task(text: bytes) -> list[str]:
    try:
        return sorted(statements(_text(text)))
    except (SyntaxError, ValueError):  # told where the task is loaded
        return [text.hex()]


def _text(source: bytes) -> str:
    return source.decode("utf-8")


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
