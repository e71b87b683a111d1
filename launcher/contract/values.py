"""Turns frozen dataclasses into JSON values, then back into the same dataclasses."""

import dataclasses
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def to_value(obj: Any) -> dict[str, Any]:
    """The dataclass ``obj`` as nested dicts and lists, ready for JSON."""
    return dataclasses.asdict(obj)


def from_value(cls: type[T], value: dict[str, Any]) -> T:
    """Rebuild ``cls`` from what :func:`to_value` gave.

    For files that tuneyard wrote itself: a key that this version does not know is left out, so that an older
    launcher can still show a newer run. What users write goes through ``launcher.spec``, which refuses instead.

    Raises:
        TypeError: a field without a default is missing.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: _convert(hints[name], item) for name, item in value.items() if name in known})


def _convert(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_value(typing.cast(type, hint), value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in args if dataclasses.is_dataclass(arg)]
        return _convert(inner[0], value) if inner and isinstance(value, dict) else value
    if origin is list and isinstance(value, list):
        return [_convert(args[0], item) for item in value]
    return value
