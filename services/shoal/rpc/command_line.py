"""How is a service started from the command line?

Errors that an operator can mend are one line on the standard error stream and a non-zero exit.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from shoal.rpc.errors import ServiceError
from shoal.rpc.server import Service, ServiceHost

Settings = TypeVar("Settings", bound=BaseModel)


def parse_settings(
    model: type[Settings], options: Mapping[str, Any], assignments: Sequence[str]
) -> Settings:
    """Make settings from options and `key=value` assignments; exit with 2 if they are wrong."""
    values = dict(options)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            _exit(2, f"{assignment!r} is not key=value")
        values[key.strip()] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        _exit(2, "\n".join(_line(each) for each in error.errors()))


def _line(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    return f"{key}: {error['msg']} (got {error['input']!r})"


def serve_until_stopped(
    service: Service, listen: str, *, expected: tuple[type[Exception], ...] = ()
) -> None:
    """Serve until SIGINT or SIGTERM; exit with 1 and the reason if the service cannot start.

    expected: errors that, like ServiceError and OSError, are an operator's to mend; any other is a
    bug, and its traceback goes to the log.
    """
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        asyncio.run(ServiceHost(service, listen).serve())
    except Exception as error:  # whatever kept it from starting is the answer
        if not isinstance(error, (OSError, ServiceError, *expected)):
            logging.getLogger(__name__).exception("cannot serve")
        _exit(1, str(error))


def _exit(code: int, message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)
