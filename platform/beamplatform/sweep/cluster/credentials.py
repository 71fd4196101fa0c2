"""Credentials that a sweep's processes need on every node, from the environment of the driver alone."""

from __future__ import annotations

import os
from collections.abc import Callable

NAMES = (
    "HF_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)
"""Of the Hugging Face hub and of S3."""


def adopted() -> Callable[[], None]:
    """What to call in every process on another node: takes over the driver's credentials that the node lacks.

    Not as `env_vars` of Ray's runtime environment: those stand in the dashboard and in Ray's logs.
    """
    from huggingface_hub import get_token

    known = {name: os.environ[name] for name in NAMES if os.environ.get(name)}
    if token := get_token():  # also the one that `hf auth login` keeps
        known["HF_TOKEN"] = token

    def adopt() -> None:
        for name, value in known.items():
            os.environ.setdefault(name, value)

    return adopt
