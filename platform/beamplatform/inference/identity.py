"""What tells one export from another, and one draw from another."""

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
"""The files of a model's folder that decide what it says."""


def fingerprint(export: Export) -> str:
    """Return a name for an export as it is now, made of letters and digits, for an engine that keeps it in memory.

    It depends on the folder and on the size and age of its weights, so that an adapter written anew to the
    same folder is loaded anew.
    """
    folder = Path(export.path).resolve()
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors"))
    return hashlib.sha256(repr((export.kind, str(folder), files)).encode()).hexdigest()[:16]


def content_hash(path: str) -> str:
    """SHA-256 over the files in a model's folder that make it what it is; of a hub id, its commit."""
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{_commit(path)}"
    whole = hashlib.sha256()
    for file in sorted({file for pattern in _CONTENT for file in folder.glob(pattern)}):
        digest = cached_for_file("digests", file, partial(_digest, file))
        whole.update(f"{file.name} {digest}\n".encode())
    return whole.hexdigest()


def _commit(repository: str) -> str:
    """The commit that a hub id stands for: the hub's client names the folder of a download after it."""
    from huggingface_hub import hf_hub_download

    read_config(repository)  # says in one line what keeps it from being read
    return Path(hf_hub_download(repository, "config.json")).parent.name


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def draw_seed(seed: int, prompts: object) -> int:
    """The seed of the draws for what is drawn together: a prompt (vLLM), or a batch of them (transformers)."""
    return int.from_bytes(hashlib.sha256(repr((seed, prompts)).encode()).digest()[:4], "big")
