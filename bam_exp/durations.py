"""Durations as people write and read them."""

import re

from bam_exp.errors import ConfigError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(seconds: float) -> str:
    """A duration for a person: `48 s`, `12 min`, `3 h 05 min`, `12 d`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes < 6000 else f"{minutes / 1440:,.0f} d"


def seconds_of(text: str) -> float:
    """The seconds of `90s`, `25m`, `3h` or `2d`.

    Raises:
        ConfigError: if the text is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise ConfigError(f"--budget {text}: should be a number with s, m, h or d, as 25m")
    return float(match.group(1)) * _SECONDS[match.group(2)]
