"""A signature is the schema: every callable that a config names, and every attention and backbone, checks its arguments."""

import difflib
import inspect
from collections.abc import Callable
from functools import wraps
from numbers import Integral
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError, validate_call

LARGEST = 2**31 - 1
"""The largest whole number that an argument may be."""

F = TypeVar("F", bound=Callable[..., Any])


class ArgumentError(ValueError):
    """A wrong argument: one line with the callable, the argument, its value and what would be right."""

    def __init__(self, message: str, name: str, value: object, reason: str) -> None:
        super().__init__(message)
        self.name = name
        """The argument, with a dotted path into it where only a part is wrong."""
        self.value = value
        self.reason = reason
        """The fault in the value, without the name of the argument."""


class UnexpectedArgument(ArgumentError, TypeError):
    """An argument that the callable does not have, lacks, or is given twice."""


def checked(function: F) -> F:
    """Decorator: a call with an unknown, missing or wrong argument raises ArgumentError, which is a ValueError.

    Types are strict, but any whole number that is not a Python int, such as NumPy's, counts as one. None may be above
    2147483647, because PyTorch computes with sizes of 32 bits in places. An unknown, missing or repeated argument is a
    TypeError too.
    """
    validated = validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False))(
        function
    )
    names = list(inspect.signature(function).parameters)
    owner = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tuple(map(_integer, args)), {name: _integer(value) for name, value in kwargs.items()}
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if isinstance(value, int) and value > LARGEST:
                reason = f"input should be less than or equal to {LARGEST}"
                raise ArgumentError(f"{owner}: {name}={value}: {reason}", name, value, reason)
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:
            failure = _first(error, names, owner)
        raise failure

    return call  # type: ignore[return-value]


def _integer(value: object) -> object:
    return int(value) if isinstance(value, Integral) and not isinstance(value, int) else value


def _first(error: ValidationError, names: list[str], owner: str) -> ArgumentError:
    """The first of pydantic's errors, in one line."""
    first = error.errors(include_url=False)[0]
    place = list(first["loc"])
    if place and isinstance(place[0], int) and place[0] < len(names):  # of a positional argument it is the number
        place[0] = names[place[0]]
    name, value = ".".join(map(str, place)), first["input"]
    reason = first["msg"][0].lower() + first["msg"][1:]
    plain = reason.removeprefix("value error, ")
    if first["type"].startswith("missing"):
        return UnexpectedArgument(f"{owner}: {name} is missing", name, "", reason)
    if "argument" in first["type"]:
        close = difflib.get_close_matches(name, names, n=1)
        hint = (
            f"; did you mean {close[0]}?"
            if close
            else f" (there are {', '.join(one for one in names if one != 'self')})"
        )
        return UnexpectedArgument(f"{owner}: {name}={value!r}: {plain}{hint}", name, value, reason)
    return ArgumentError(f"{owner}: {name}={value!r}: {plain}", name, value, reason)
