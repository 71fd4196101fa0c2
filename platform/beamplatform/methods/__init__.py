"""The fine-tuning methods that are compared. Each is one class in its own module and one line in `METHODS`."""

from __future__ import annotations

from beamplatform.errors import UserError
from beamplatform.methods.adalora import AdaLora
from beamplatform.methods.base import Method
from beamplatform.methods.beamlora import BeamLora
from beamplatform.methods.dora import Dora
from beamplatform.methods.full import Full
from beamplatform.methods.increlora import IncreLora
from beamplatform.methods.lora import Lora
from beamplatform.methods.milora import Milora
from beamplatform.methods.pissa import Pissa
from beamplatform.methods.relora import Relora

METHODS: dict[str, type[Method]] = {
    "beamlora": BeamLora,
    "full": Full,
    "lora": Lora,
    "dora": Dora,
    "pissa": Pissa,
    "milora": Milora,
    "adalora": AdaLora,
    "relora": Relora,
    "increlora": IncreLora,
}


def get_method(name: str) -> type[Method]:
    """Return the class of the method with this name.

    Raises:
        UserError: the name is unknown; the message lists the known names.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; allowed: {', '.join(METHODS)}")
    return METHODS[name]
