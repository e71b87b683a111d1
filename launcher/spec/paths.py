"""Tells paths from hub ids in a tree, and makes the paths absolute."""

import ast
import difflib
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from launcher.contract.adapter import ADAPTER_CONFIG
from launcher.contract.pipeline import REFERENCE_START
from launcher.errors import Problem

from .text import MAX_BYTES
from .tree import Node, clip, find_node

DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".txt")
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
BUILTIN_MODELS = ("builtin:tiny",)
BUILTIN_REWARDS = ("builtin:length",)
_LOOKS_LOCAL = re.compile(r"/|~|\.{1,2}(/|$)")


def resolve_paths(root: Node, folder: Path, cwd: Path, copied: Collection[str] = ()) -> list[Problem]:
    """Make every path below ``root`` absolute, in place; returns what does not exist.

    A path in the file is relative to ``folder``, the spec's own; one in an override to ``cwd``. Keys in ``copied`` are
    absolute already and are left as they are.
    """
    problems: list[Problem] = []
    for key, resolve in _RESOLVERS.items():
        if key in copied:
            continue
        for name, node in _texts(root, key):
            base = cwd if node.place.line is None else folder
            try:
                node.value = resolve(str(node.value), base)
            except _Unusable as error:
                message, hint = error.args
                problems.append(node.place.problem(name, message, hint))
    return problems


def is_hub_id(value: str) -> bool:
    """Whether a resolved ``model.base`` or ``data.train`` is a hub id."""
    return HUB_ID.fullmatch(value) is not None


class _Unusable(Exception):
    """A value that names nothing: what is wrong, and the remedy."""


def _texts(root: Node, key: str) -> Iterator[tuple[str, Node]]:
    node, is_there = find_node(root, tuple(key.split(".")))
    if not is_there:
        return
    items = node.value if isinstance(node.value, list) else None
    for name, item in [(key, node)] if items is None else [(f"{key}.{i}", item) for i, item in enumerate(items)]:
        if isinstance(item.value, str) and item.value and REFERENCE_START not in item.value:
            yield name, item


def _resolve_base(value: str, folder: Path) -> str:
    if value.startswith("builtin:"):
        if value in BUILTIN_MODELS:
            return value
        raise _Unusable(f"there is no {_show(value)}", f"the built-in models are {', '.join(BUILTIN_MODELS)}")
    path = _absolute(value, folder)
    if not _LOOKS_LOCAL.match(value) and not os.path.exists(path):
        return _check_hub_id(value, "a folder, such as ./model, or builtin:tiny")
    if not os.path.isdir(path):
        raise _no_such(path, "a folder with a model in it")
    if not any(os.path.isfile(os.path.join(path, name)) for name in ("config.json", ADAPTER_CONFIG)):
        message = f"{_show(path)} has neither config.json nor {ADAPTER_CONFIG}"
        raise _Unusable(message, "name the folder that save_pretrained wrote, or a run's final/")
    return path


def _resolve_data(value: str, folder: Path) -> str:
    path = _absolute(value, folder)
    is_local = _LOOKS_LOCAL.match(value) or value.endswith(DATA_SUFFIXES) or os.path.exists(path)
    if not is_local:
        return _check_hub_id(value, f"a file ({' '.join(DATA_SUFFIXES)}) or a folder")
    if not os.path.exists(path):
        raise _no_such(path, "a file or folder with rows")
    if not os.access(path, os.R_OK):
        raise _Unusable(f"{_show(path)} cannot be read", "check its permissions")
    return path


def _resolve_template(value: str, folder: Path) -> str:
    if "{{" in value or "{%" in value:
        return value
    path = _absolute(value, folder)
    if not os.path.isfile(path):
        raise _no_such(path, "a file with a Jinja template, or the template itself")
    return path


def _resolve_ds_config(value: str, folder: Path) -> str:
    path = _absolute(value, folder)
    try:
        with open(path, encoding="utf-8") as stream:
            config = json.loads(stream.read(MAX_BYTES))
    except OSError:
        raise _no_such(path, "a DeepSpeed JSON file") from None
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"{_show(path)} is not JSON: {error}", "a DeepSpeed config is one JSON object") from None
    if not isinstance(config, dict):
        raise _Unusable(f"{_show(path)} is not a JSON object", "a DeepSpeed config is one JSON object")
    return path


def _resolve_script(value: str, folder: Path) -> str:
    path = _absolute(value, folder)
    if not os.path.isfile(path):
        raise _no_such(path, "a Python file")
    if not path.endswith(".py"):
        raise _Unusable(f"{_show(path)} is no .py file", "name the Python file that every rank runs")
    return path


def _resolve_reward(value: str, folder: Path) -> str:
    """A function as FILE.py:FUNCTION, a model as ``model.base``."""
    if value.startswith("builtin:"):
        if value in BUILTIN_REWARDS:
            return value
        raise _Unusable(f"there is no {_show(value)}", f"the built-in rewards are {', '.join(BUILTIN_REWARDS)}")
    file, colon, function = value.rpartition(":")
    if not colon or not function.isidentifier():
        return _resolve_base(value, folder)
    # module:function, as Python imports it from the spec's folder
    path = _absolute(file if file.endswith(".py") else f"{file.replace('.', '/')}.py", folder)
    if not os.path.isfile(path):
        raise _no_such(path, "a Python file beside the spec, and a function in it: rewards.py:score")
    try:
        with open(path, encoding="utf-8") as stream:
            body = ast.parse(stream.read(MAX_BYTES)).body
    except (OSError, ValueError, SyntaxError) as error:
        raise _Unusable(f"{_show(path)} is not Python: {error}", "mend it, or name another file") from None
    functions = [item.name for item in body if isinstance(item, ast.FunctionDef)]
    if function not in functions:
        known = f"it has {', '.join(functions)}" if functions else "it has none"
        raise _Unusable(f"{_show(path)} has no function {function}", f"{known}; write FILE.py:FUNCTION")
    return f"{path}:{function}"


def _resolve_sources(value: str, folder: Path) -> str:
    path = _absolute(value, folder)
    if not os.path.isdir(path):
        raise _no_such(path, "the folder that is copied with the script")
    return path


_RESOLVERS = {
    "model.base": _resolve_base,
    "data.train": _resolve_data,
    "data.eval": _resolve_data,
    "data.chat_template": _resolve_template,
    "parallel.ds_config": _resolve_ds_config,
    "script.path": _resolve_script,
    "script.sources": _resolve_sources,
    "ppo.reward": _resolve_reward,
}


def _absolute(value: str, folder: Path) -> str:
    return os.path.abspath(os.path.join(folder, os.path.expanduser(value)))


def _check_hub_id(value: str, otherwise: str) -> str:
    if is_hub_id(value):
        return value
    hint = f"a hub id is owner/name; else write {otherwise}"
    if re.fullmatch(r"[0-9.]+", value):
        hint = "a number stands without quotes"
    raise _Unusable(f"{_show(value)} does not exist, and is no hub id", hint)


def _no_such(path: str, expected: str) -> _Unusable:
    folder, name = os.path.split(path)
    try:
        close = difflib.get_close_matches(name, os.listdir(folder)[:10_000], n=1)
    except OSError:
        close = []
    kind = "is not a folder" if os.path.isfile(path) else "is a folder" if os.path.isdir(path) else "does not exist"
    return _Unusable(f"{_show(path)} {kind}", f"did you mean {close[0]}?" if close else f"name {expected}")


def _show(value: str) -> str:
    return clip(value) if len(value) <= 60 else f"...{clip(value[-57:])}"
