"""A signature is the schema: how every callable that a config names checks its arguments."""

from pydantic import ConfigDict, validate_call

checked = validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True))
"""Decorator: calls with an unknown keyword, a wrong type or a value out of range raise pydantic's ValidationError
(a ValueError), naming each offending argument."""
