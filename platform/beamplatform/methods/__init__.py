"""The fine-tuning methods that are compared. A method is one module with one class; adding one is a line here."""

from __future__ import annotations

from beamplatform.errors import UserError
from beamplatform.methods.adalora import AdaLora
from beamplatform.methods.base import Method
from beamplatform.methods.beamlora import BeamLora
from beamplatform.methods.dora import Dora
from beamplatform.methods.lora import Lora

METHODS: dict[str, type[Method]] = {
    "lora": Lora,
    "dora": Dora,
    "adalora": AdaLora,
    "beamlora": BeamLora,
}


def get_method(name: str) -> type[Method]:
    """The method's class.

    Raises:
        UserError: unknown name; lists the known ones.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; allowed: {', '.join(METHODS)}")
    return METHODS[name]
