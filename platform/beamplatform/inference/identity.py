"""What tells one export from another for an engine that keeps exports in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from beamplatform.inference.engine import Export


def fingerprint(export: Export) -> str:
    """Return a name for an export as it is now, made of letters and digits.

    It depends on the folder and on the size and age of its weights, so that an adapter written anew to the
    same folder is loaded anew.
    """
    folder = Path(export.path).resolve()
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors"))
    return hashlib.sha256(repr((export.kind, str(folder), files)).encode()).hexdigest()[:16]
