"""Reads one unquoted YAML 1.2 scalar."""

import math
import re

Scalar = str | int | float | bool | None

# YAML 1.2, core schema (https://yaml.org/spec/1.2.2/#103-core-schema): `no` is text, 5e-7 a number, 010 is ten.
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_scalar(text: str) -> Scalar:
    """What unquoted ``text`` is in YAML 1.2.

    Raises:
        ValueError: it is a number, but not a finite one, or of thousands of digits.
    """
    if _NULL.fullmatch(text):
        return None
    if match := _BOOL.fullmatch(text):
        return match[1] is not None
    if _INT.fullmatch(text):
        return int(text)
    if _OTHER_BASE.fullmatch(text):
        return int(text, 0)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError
    if _FLOAT.fullmatch(text):
        if not math.isfinite(number := float(text)):
            raise ValueError
        return number
    return text
