"""Puts environment variables into the values of a tree: ``${env:NAME}`` and ``${env:NAME:-default}``."""

import re
from collections.abc import Mapping

from launcher.errors import Problem

from .schema import find_key, fit_text
from .tree import Node, clip

_REFERENCE = re.compile(r"\$\{env:([^}]*)\}?")
_SECRET = re.compile(r".*_(TOKEN|API_KEY|SECRET|PASSWORD)")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:-(.*))?", re.DOTALL)


def substitute(root: Node, cls: type, environ: Mapping[str, str]) -> list[Problem]:
    """Replace every reference below ``root``, in place; returns what could not be.

    What comes out is one scalar whatever the variable holds: it is read as YAML would read it unquoted where the key
    takes a number, a truth value or null, else it is text. An empty variable takes the default, as in a shell.
    """
    problems: list[Problem] = []
    _visit(root, (), cls, environ, problems)
    return problems


def _visit(
    node: Node, path: tuple[str | int, ...], cls: type, environ: Mapping[str, str], problems: list[Problem]
) -> None:
    if isinstance(node.value, dict):
        for name, child in node.value.items():
            _visit(child, (*path, name), cls, environ, problems)
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            _visit(child, (*path, index), cls, environ, problems)
    elif isinstance(node.value, str) and "${env:" in node.value:
        try:
            text = _REFERENCE.sub(lambda match: _look_up(match, environ), node.value)
        except _Unusable as error:
            message, hint = error.args
            problems.append(node.place.problem(".".join(map(str, path)), message, hint))
            return
        key = find_key(cls, path)
        node.value = fit_text(text, key.type) if key else text
        node.from_env = True


class _Unusable(Exception):
    """A reference that gives nothing: what is wrong, and the remedy."""


def _look_up(reference: re.Match[str], environ: Mapping[str, str]) -> str:
    shown = clip(reference[0])
    inside = _INSIDE.fullmatch(reference[1])
    if not inside or not reference[0].endswith("}") or "${" in reference[1]:
        raise _Unusable(f"{shown} is not a reference", "write ${env:NAME} or ${env:NAME:-default}; they do not nest")
    name, default = inside[1], inside[3]
    if _SECRET.fullmatch(name):
        raise _Unusable(
            f"{name} is a secret, and would stand in the files of the run",
            "leave it out: WANDB_API_KEY and HF_TOKEN reach the job by themselves where it needs them",
        )
    value = environ.get(name, "")
    if not value and default is not None:
        return default
    if name not in environ:
        raise _Unusable(f"the environment has no {name}", f"set {name}, or write a default: ${{env:{name}:-default}}")
    if not value.isprintable():
        # A newline in a name or path would reach scripts; bytes that are not UTF-8 arrive as surrogates.
        raise _Unusable(f"{name} holds a line break or another control character", f"set {name} to plain text")
    return value
