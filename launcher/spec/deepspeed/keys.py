"""Knows every key of a DeepSpeed config: DeepSpeed itself reads past a misspelt one."""

import difflib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

REFUSED = {
    "autotuning": "only DeepSpeed's own launcher tunes; set train.micro_batch",
    "checkpoint": "the run writes its checkpoints itself; remove it",
    "comet": "metrics go to the run's ledger; see the tracking section of the spec",
    "data_efficiency": "the run deals its rows itself; remove it",
    "datastates_ckpt": "the run writes its checkpoints itself; remove it",
    "dataloader_drop_last": "the run deals its rows itself; remove it",
    "expert_parallel": "the plan spreads each batch over all ranks; remove it",
    "hybrid_engine": "the run does not generate through DeepSpeed; remove it",
    "managed_gradient_accumulation": "the Trainer says when a step ends; remove it",
    "pipeline": "the plan spreads each batch over all ranks; remove it",
    "sequence_parallel_size": "the plan spreads each batch over all ranks; remove it",
    "tensor_parallel": "the plan spreads each batch over all ranks; remove it",
    "wandb": "ranks never talk to W&B; see the tracking section of the spec",
    "weight_quantization": "set model.quantization in the spec",
}
"""Sections that DeepSpeed has, and why they cannot stand in the config of a run."""


@functools.cache
def known_keys() -> dict[str, Any]:
    """Key -> None, or the keys of its section; a test makes the file anew from the installed DeepSpeed."""
    keys: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return keys


def find_unknown(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Message and hint of each key in ``config`` that DeepSpeed has not, and of each section that is none."""
    yield from _find_unknown(config, known_keys(), "")


def _find_unknown(config: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in REFUSED:
            yield f"{name} has no place in a run", REFUSED[name]
        elif key not in known:
            yield f"{_show(name)} is not a key that DeepSpeed knows", _did_you_mean(key, known, prefix)
        elif known[key] is None and isinstance(value, Mapping):
            yield f"{name} is a section here, but takes a single value", f"write {json.dumps(key)}: and the value"
        elif known[key] is not None:
            if isinstance(value, Mapping):
                yield from _find_unknown(value, known[key], f"{name}.")
            else:
                yield f"{name} is {_show(json.dumps(value))}, but is a section", f"its keys are {', '.join(known[key])}"


def _did_you_mean(key: str, known: Mapping[str, Any], prefix: str) -> str:
    if close := difflib.get_close_matches(key, known, n=1, cutoff=0.7):
        return f"did you mean {prefix}{close[0]}?"
    if places := [place for place in _places(known_keys()) if place.rsplit(".", 1)[-1] == key]:
        return f"did you mean {' or '.join(places[:3])}?"
    if len(known) <= 12:
        return f"the keys here are {', '.join(known)}"
    return "remove it, or see https://www.deepspeed.ai/docs/config-json/"


def _places(known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, inner in known.items():
        yield f"{prefix}{key}"
        yield from _places(inner or {}, f"{prefix}{key}.")


def _show(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
