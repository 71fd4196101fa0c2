"""Whether a failed write is worth another try, by the error that MLflow and what it stands on raise."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import requests
import sqlalchemy.exc
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, ENDPOINT_NOT_FOUND

from beamplatform.tracking.outage import is_away


def wrapped(error: Exception, **options: Any) -> MlflowException:
    """As MLflow raises what it caught."""
    outer = MlflowException(str(error), **options)
    outer.__cause__ = error
    return outer


def answer(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (MlflowException("API request failed with exception ..."), True),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE"}), True),
        (RestException({"error_code": "RESOURCE_EXHAUSTED"}), True),
        (RestException({"error_code": "UNAUTHENTICATED"}), True),
        (MlflowException("a proxy's page", ENDPOINT_NOT_FOUND), True),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST"}), False),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE"}), False),
        (wrapped(sqlalchemy.exc.OperationalError("", {}, Exception("locked"))), True),
        (wrapped(sqlalchemy.exc.TimeoutError("all connections in use"), error_code=BAD_REQUEST), True),
        (wrapped(sqlalchemy.exc.InterfaceError("", {}, Exception("closed")), error_code=BAD_REQUEST), True),
        (wrapped(sqlalchemy.exc.IntegrityError("", {}, Exception("unique")), error_code=BAD_REQUEST), False),
        (wrapped(OverflowError("int too large")), False),
        (answer(503), True),
        (answer(413), False),
        (requests.ConnectionError("refused"), True),
        (requests.JSONDecodeError("a proxy's page", "<html>", 0), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (PermissionError(errno.EACCES, "a share that is not mounted"), True),
        (FileNotFoundError("no files to store"), False),
        (ValueError("status 'DONE' is none of ..."), False),
        (Exception("a cloud's own error"), True),
    ],
)
def test_what_is_worth_another_try(error: Exception, away: bool) -> None:
    assert is_away(error) is away
