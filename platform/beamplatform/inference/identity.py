"""Identifiers of an export, of its content, and of a random draw."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from beamplatform.inference.engine import Export
from beamplatform.io.disk_cache import cached_for_file
from beamplatform.models.loading import read_config

_CONTENT = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt",
)  # fmt: skip
"""The files in a model's folder that decide what the model generates."""


def fingerprint(export: Export) -> str:
    """Return the name under which an engine keeps the current state of an export in memory: 16 hexadecimal digits.

    It depends on the folder and on the size and age of the weight files, so an adapter that is written again to the
    same folder is also loaded again.
    """
    folder = Path(export.path).resolve()
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors"))
    return hashlib.sha256(repr((export.kind, str(folder), files)).encode()).hexdigest()[:16]


def content_hash(path: str) -> str:
    """SHA-256 over the files that decide what a model generates; for a hub id, the id and its commit."""
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{_commit(path)}"
    whole = hashlib.sha256()
    for file in sorted({file for pattern in _CONTENT for file in folder.glob(pattern)}):
        digest = cached_for_file("digests", file, partial(_digest, file))
        whole.update(f"{file.name} {digest}\n".encode())
    return whole.hexdigest()


def _commit(repository: str) -> str:
    """Return the commit that a hub id currently refers to.

    The hub's client downloads into a folder whose name is the commit.
    """
    from huggingface_hub import hf_hub_download

    read_config(repository)  # raises a UserError if the repository cannot be read
    return Path(hf_hub_download(repository, "config.json")).parent.name


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def draw_seed(seed: int, prompts: object) -> int:
    """The seed for prompts that are sampled together: one prompt (vLLM), or one batch of prompts (transformers)."""
    return int.from_bytes(hashlib.sha256(repr((seed, prompts)).encode()).digest()[:4], "big")
