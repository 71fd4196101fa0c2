"""Does an engine really apply an adapter? A harness that silently asks the base model scores every adapter alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beamplatform.errors import UserError
from beamplatform.inference.adapter_check import ADAPTER_WEIGHTS
from beamplatform.inference.engine import Export

PROBES = 4
"""Prompts on which the base model and the adapter are compared."""


class ExportError(UserError):
    """One export cannot be served; the others can.

    Attributes:
        export: the one.
    """

    def __init__(self, export: Export, message: str) -> None:
        super().__init__(message)
        self.export = export

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.export, str(self))


@contextmanager
def blaming(export: Export) -> Iterator[None]:
    """What is wrong in here is wrong with this export."""
    try:
        yield
    except ExportError:
        raise
    except UserError as error:
        raise ExportError(export, str(error)) from error


def require_in_use(export: Export, base: Any, adapted: Any) -> None:
    """Compare what the base model and the adapter think of the same prompts.

    Args:
        export: an adapter.
        base, adapted: logits or log-probabilities of the next token, as anything that `==` compares.

    Raises:
        ExportError: they are the same to the bit, though the adapter's weights are not zero.
    """
    if base == adapted and changes_weights(Path(export.path)):
        raise ExportError(
            export,
            f"adapter {export.path} is not in use: the engine thinks with it exactly what it thinks without it, though "
            "its weights are not zero; check that its target modules are those of this model",
        )


def changes_weights(folder: Path) -> bool:
    """Whether B A is other than zero in any module of a LoRA adapter."""
    from safetensors.torch import load_file

    tensors = load_file(folder / ADAPTER_WEIGHTS)
    for name, a in tensors.items():
        b = tensors.get(name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B"))
        if "lora_" in name and "_A" in name and b is not None and bool((b.float() @ a.float()).any()):
            return True
    return False
