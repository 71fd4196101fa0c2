"""A model is as it was before, where putting an adapter into it fails half way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def unchanged_on_failure(model: nn.Module) -> Iterator[None]:
    """If the body raises, give all modules of `model` the children, attributes, hooks and classes that they had.

    Also which parameters require gradients. Values of tensors are not looked at: adding an adapter changes none.
    """
    modules = [(module, type(module), _Attributes(module)) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, kind, attributes in modules:
            module.__class__ = kind
            attributes.restore(module)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        raise


class _Attributes:
    """A module's attributes, and what its dictionaries (children, parameters, hooks) hold."""

    def __init__(self, module: nn.Module) -> None:
        self._attributes: dict[str, Any] = dict(module.__dict__)
        # By dict's own method: ZeRO-3's dictionaries fetch the parameters that are looked at.
        self._contents = [
            (value, [(key, dict.__getitem__(value, key)) for key in value])
            for value in self._attributes.values()
            if isinstance(value, dict)
        ]

    def restore(self, module: nn.Module) -> None:
        for dictionary, contents in self._contents:
            dictionary.clear()
            dictionary.update(contents)
        module.__dict__.clear()
        module.__dict__.update(self._attributes)
