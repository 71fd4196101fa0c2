"""Tells whether a failed write is worth another try, or whether the store will never accept it."""

from __future__ import annotations

WORTH_WAITING = (401, 403, 408, 429)
"""HTTP statuses below 500 that may pass: expired credentials can be renewed, and a busy server calms down."""

_BAD_PATHS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
_BAD_VALUES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, NotImplementedError)


def is_away(error: BaseException) -> bool:
    """Whether the same write may succeed later.

    An error that is not known to be final counts as an outage. A store may use any database, file system or cloud, and
    each has its own errors for "not now", while only few errors mean that the write itself is wrong.
    """
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        # MLflow wraps the errors of a database driver, and calls all but one kind of them a bad request.
        if isinstance(error.__cause__, (sqlalchemy.exc.SQLAlchemyError, *_BAD_VALUES)):
            return is_away(error.__cause__)
        # No MLflow server is at the address: a proxy answers, but the server behind it is gone.
        return error.error_code == "ENDPOINT_NOT_FOUND" or _may_pass(error.get_http_status_code())
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _may_pass(error.response.status_code)
    if isinstance(error, sqlalchemy.exc.SQLAlchemyError):
        wrong = (sqlalchemy.exc.DataError, sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError)
        return not isinstance(error, wrong) and type(error) is not sqlalchemy.exc.StatementError
    if isinstance(error, OSError):  # before `_BAD_VALUES`: some errors of requests belong to both groups
        return not isinstance(error, _BAD_PATHS)
    return not isinstance(error, _BAD_VALUES)


def _may_pass(status: int) -> bool:
    return status >= 500 or status in WORTH_WAITING
