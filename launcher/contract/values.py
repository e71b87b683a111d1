"""Turns frozen dataclasses into JSON values, then back into the same dataclasses."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from .files import DamagedFile, read_json

T = TypeVar("T")


def to_value(obj: Any) -> dict[str, Any]:
    """The dataclass ``obj`` as nested dicts and lists, ready for JSON."""
    return dataclasses.asdict(obj)


def from_value(cls: type[T], value: dict[str, Any]) -> T:
    """Rebuild ``cls`` from what :func:`to_value` gave.

    For files that tuneyard wrote itself: a key that this version does not know is left out, so that an older
    launcher can still show a newer run. What users write goes through ``launcher.spec``, which refuses instead.

    Raises:
        TypeError: a field without a default is missing, or a value is of another type.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{cls.__name__} is not a section but {_tell(value)}")
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: _convert(hints[name], item, name) for name, item in value.items() if name in known})


def read_value(cls: type[T], path: Path) -> T | None:
    """The ``cls`` in the file ``path``, or None where there is none.

    Raises:
        DamagedFile: it is no JSON, or not a ``cls``.
    """
    value = read_json(path)
    if value is None and not path.exists():
        return None
    try:
        return from_value(cls, value)
    except TypeError as error:
        raise DamagedFile(path, error) from error


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for arg in args:
            try:
                return _convert(arg, value, name)
            except TypeError as error:
                # Of a section that it may be, what is wrong in it says more.
                if isinstance(value, dict) and dataclasses.is_dataclass(arg):
                    raise error from None
    elif dataclasses.is_dataclass(hint):
        return from_value(typing.cast(type, hint), value)
    elif origin is list and isinstance(value, list):
        return [_convert(args[0], item, name) for item in value]
    elif origin is dict and isinstance(value, dict):
        return {key: _convert(args[1], item, name) for key, item in value.items()}
    elif _is_a(hint, origin, args, value):
        return value
    raise TypeError(f"{name} has {_tell(value)}")


def _is_a(hint: Any, origin: Any, args: tuple[Any, ...], value: Any) -> bool:
    if origin is typing.Literal:  # a newer version may know more words
        return isinstance(value, tuple(type(arg) for arg in args))
    if hint is float:  # JSON has 1 for 1.0
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or (isinstance(hint, type) and isinstance(value, hint))


def _tell(value: Any) -> str:
    return f"{value!r:.60}"
