"""Generation engines behind one interface, and the check of the exports that they load."""

from __future__ import annotations

from beamplatform.inference.engine import Engine, Export, Generation, Request
from beamplatform.inference.export_check import check_export
from beamplatform.inference.factory import create_engine

__all__ = ["Engine", "Export", "Generation", "Request", "check_export", "create_engine"]
