"""Restoring a model when adding an adapter to it fails halfway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def unchanged_on_failure(model: nn.Module) -> Iterator[None]:
    """If the body raises, restore the children, attributes, hooks and class of every module of `model`.

    This also restores which parameters require gradients. It does not restore tensor values, since adding an adapter
    changes none.
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
    """A copy of a module's attributes and of the contents of its dictionaries (children, parameters, hooks)."""

    def __init__(self, module: nn.Module) -> None:
        self._attributes: dict[str, Any] = dict(module.__dict__)
        # dict's own method is used because ZeRO-3's dictionaries fetch every parameter that is read through them.
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
