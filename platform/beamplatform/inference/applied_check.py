"""Checks that an engine really applies an adapter.

A harness that silently asked the base model would score every adapter alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beamplatform.errors import UserError
from beamplatform.inference.adapter_check import ADAPTER_WEIGHTS
from beamplatform.inference.engine import Export

PROBES = 4
"""Number of prompts on which the base model and the adapter are compared."""


class ExportError(UserError):
    """One export cannot be served; the other exports can.

    Attributes:
        export: the export that cannot be served.
    """

    def __init__(self, export: Export, message: str) -> None:
        super().__init__(message)
        self.export = export

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.export, str(self))


@contextmanager
def blaming(export: Export) -> Iterator[None]:
    """Turn any `UserError` inside this context into an `ExportError` of `export`."""
    try:
        yield
    except ExportError:
        raise
    except UserError as error:
        raise ExportError(export, str(error)) from error


def require_in_use(export: Export, base: Any, adapted: Any) -> None:
    """Check that an adapter changes what the model predicts for the same prompts.

    Args:
        export: an adapter.
        base, adapted: logits or log-probabilities of the next token without and with the adapter, in any type that
            `==` compares.

    Raises:
        ExportError: both are identical to the bit, although the adapter's weights are not zero.
    """
    if base == adapted and changes_weights(Path(export.path)):
        raise ExportError(
            export,
            f"adapter {export.path} is not in use: the engine predicts exactly the same with and without it, although "
            "its weights are not zero; check that its target modules are those of this model",
        )


def changes_weights(folder: Path) -> bool:
    """Whether the product B A is nonzero in any module of a LoRA adapter."""
    from safetensors.torch import load_file

    tensors = load_file(folder / ADAPTER_WEIGHTS)
    for name, a in tensors.items():
        b = tensors.get(name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B"))
        if "lora_" in name and "_A" in name and b is not None and bool((b.float() @ a.float()).any()):
            return True
    return False
