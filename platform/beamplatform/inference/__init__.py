"""Generation engines behind one interface, and the check of what they are asked to load."""

from __future__ import annotations

from beamplatform.inference.check import check_export
from beamplatform.inference.engine import Engine, Export, Generation, Request, create_engine

__all__ = ["Engine", "Export", "Generation", "Request", "check_export", "create_engine"]
