"""Gives a sweep's processes on every node the credentials from the driver's environment."""

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
"""Environment variables for access to the Hugging Face hub and to S3."""


def adopted() -> Callable[[], None]:
    """Return a function that sets the driver's credentials in a process on another node, if the node lacks them.

    They are not passed as `env_vars` of Ray's runtime environment, because its dashboard and logs show those values.
    """
    from huggingface_hub import get_token

    credentials = {name: os.environ[name] for name in NAMES if os.environ.get(name)}
    if token := get_token():  # also finds the token that `hf auth login` keeps
        credentials["HF_TOKEN"] = token

    def adopt() -> None:
        for name, value in credentials.items():
            os.environ.setdefault(name, value)

    return adopt
