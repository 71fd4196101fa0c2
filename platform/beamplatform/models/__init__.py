"""The base model: how it is loaded, its shapes, and the checks before it is used."""
