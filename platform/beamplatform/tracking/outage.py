"""Whether a failed write is worth another try: the store is away, or it will never take this write."""

from __future__ import annotations

WORTH_WAITING = (401, 403, 408, 429)
"""Answers below 500 that are about the moment: credentials that ran out can be renewed, a busy server gets calmer."""

_BAD_PATHS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
_BAD_VALUES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, NotImplementedError)


def is_away(error: BaseException) -> bool:
    """Whether the same write may succeed later.

    What is not known to be final counts as an outage: a store may stand on any database, file system or cloud, each
    with errors of its own for "not now", while the ways to be wrong are few.
    """
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        # For a database MLflow wraps the driver's error, and calls all but one kind of them a bad request.
        if isinstance(error.__cause__, (sqlalchemy.exc.SQLAlchemyError, *_BAD_VALUES)):
            return is_away(error.__cause__)
        # Nothing of MLflow's is at the address: what answers is a proxy whose server is gone.
        return error.error_code == "ENDPOINT_NOT_FOUND" or _may_pass(error.get_http_status_code())
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _may_pass(error.response.status_code)
    if isinstance(error, sqlalchemy.exc.SQLAlchemyError):
        wrong = (sqlalchemy.exc.DataError, sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError)
        return not isinstance(error, wrong) and type(error) is not sqlalchemy.exc.StatementError
    if isinstance(error, OSError):  # before the bad values: requests has errors that are both
        return not isinstance(error, _BAD_PATHS)
    return not isinstance(error, _BAD_VALUES)


def _may_pass(status: int) -> bool:
    return status >= 500 or status in WORTH_WAITING
