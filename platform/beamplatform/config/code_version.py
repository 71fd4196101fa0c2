"""Computes the version of the code that determines the results of a trial."""

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
"""Packages and modules that train, generate and score. Reports, tracking and search do not change a trial's results."""


def code_version(tasks: Sequence[str] = ()) -> str:
    """Return eight hex digits: a hash of the code that trains and scores, and of the user's own task files.

    The hash covers what the sources do (`config/normal_form.py`), not the names of their files: a finished trial stays
    finished when a docstring is edited or a file moves. The commit would not do, because most commits change no result,
    and an installed package has no commit.

    Args:
        tasks: names or files of the tasks, as in a suite; only the files count.

    Raises:
        FileNotFoundError: a part of the code is not where its name says.
    """
    task_sources = [Path(task).read_bytes() for task in tasks if task.endswith(".py")]
    return version_of([file.read_bytes() for part in PARTS for file in sources(part)], task_sources)


def version_of(parts: Sequence[bytes], tasks: Sequence[bytes] = ()) -> str:
    """Return eight hex digits: a hash of the code's sources in any order, and of the task files in the given order."""
    texts = [hashlib.sha256(text).hexdigest() for text in sorted(parts)]
    code = cached_json(
        "code",
        (texts, _METHOD),
        lambda: _digest(sorted({statement for text in parts for statement in statements(_text(text))})),
    )
    return _digest([code, *(_digest(_statements_of_task(text)) for text in tasks)])[:8]


_METHOD = hashlib.sha256(Path(__file__).with_name("normal_form.py").read_bytes()).hexdigest()
"""Hash of the module that computes the normal form: when it changes, earlier entries of the cache do not count."""


def sources(part: str) -> Iterator[Path]:
    """Yield the source files of a part of the code, which is a package or a module.

    Raises:
        FileNotFoundError: there are no such files; the message names the part.
    """
    package, _, inner = part.partition(".")
    spec = importlib.util.find_spec(package)  # finds the package without importing it, which would take seconds
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{part}: this part of the code, which decides results, is not installed")
    path = Path(spec.origin).resolve().parent.joinpath(*inner.split("."))
    module = path.with_name(f"{path.name}.py")
    files = sorted(path.rglob("*.py")) if path.is_dir() else [module] if inner and module.is_file() else []
    if not files:
        raise FileNotFoundError(f"{part}: this part of the code, which decides results, is not at {path}")
    yield from files


def _statements_of_task(text: bytes) -> list[str]:
    try:
        return sorted(statements(_text(text)))
    except (SyntaxError, ValueError):  # the error is reported when the task is loaded
        return [text.hex()]


def _text(source: bytes) -> str:
    return source.decode("utf-8")


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
