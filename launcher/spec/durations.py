"""Turns the durations of specs and profiles into minutes, Slurm's granularity."""

import math
import re

MAX_DAYS = 366
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIMPLE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd])")
_CLOCK = re.compile(r"(?:([0-9]{1,4})-)?([0-9]{1,3}):([0-9]{2}):([0-9]{2})")


def parse_minutes(text: str) -> int:
    """Minutes, rounded up, in ``90s``, ``30m``, ``4h``, ``1.5d``, ``1:30:00`` (h:m:s) or ``2-12:00:00`` (d-h:m:s).

    Raises:
        ValueError: not a duration, or not between a second and a year; the message says which.
    """
    if match := _SIMPLE.fullmatch(text):
        seconds = float(match[1]) * _SECONDS[match[2]]
    elif match := _CLOCK.fullmatch(text):
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    else:
        raise ValueError("not a duration such as 90s, 30m, 4h, 1:30:00 or 2-12:00:00")
    if seconds <= 0:
        raise ValueError("a duration of nothing, which Slurm takes for no limit")
    if seconds > MAX_DAYS * 86400:
        raise ValueError(f"longer than {MAX_DAYS} days")
    return math.ceil(seconds / 60)
