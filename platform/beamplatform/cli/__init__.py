"""Command lines: options that several pipelines share, and how a program ends."""
