"""Reads the DeepSpeed JSON that a plan is merged over: the user's, or the one that comes with tuneyard."""

import json
from pathlib import Path
from typing import Any, NoReturn

from launcher.contract.spec import Spec
from launcher.contract.strategies import ZERO_STAGES
from launcher.data import find_data
from launcher.errors import UserError


def read_base(spec: Spec) -> dict[str, Any] | None:
    """``parallel.ds_config``, or else ``ds_configs/<strategy>.json``; None where the strategy is not DeepSpeed's.

    Raises:
        UserError: the user's file cannot be read, or is not one JSON object whose keys stand once each.
    """
    if spec.parallel.strategy not in ZERO_STAGES:
        return None
    path = Path(spec.parallel.ds_config or find_data(f"ds_configs/{spec.parallel.strategy}.json"))
    try:
        config = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"parallel.ds_config: {path}: {error}\n  hint: name a DeepSpeed JSON file") from None
    if not isinstance(config, dict):
        raise UserError(f"parallel.ds_config: {path} is not a JSON object\n  hint: name a DeepSpeed JSON file")
    return config


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """DeepSpeed refuses a key that stands twice; Python and accelerate keep the last one."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {json.dumps(key)} stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
