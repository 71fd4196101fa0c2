"""The base model: loading, its shapes, and what is checked before it is used."""
