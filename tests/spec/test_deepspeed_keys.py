"""The closed list of DeepSpeed's keys, and what is said of one that is not in it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.spec.deepspeed import keys as deepspeed_keys
from launcher.spec.deepspeed.keys import REFUSED, find_unknown, known_keys

from .deepspeed_introspection import read_keys


def test_the_keys_are_those_of_the_installed_deepspeed() -> None:
    """UPDATE_GOLDEN=1 writes them anew."""
    pytest.importorskip("deepspeed")
    keys = read_keys()
    assert set(REFUSED) <= set(keys)
    keys = {key: inner for key, inner in keys.items() if key not in REFUSED}
    if os.environ.get("UPDATE_GOLDEN"):
        Path(deepspeed_keys.__file__).with_suffix(".json").write_text(json.dumps(keys, indent=1) + "\n")
        known_keys.cache_clear()
    assert keys == known_keys()


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"gradient_cliping": 1.0}, "gradient_cliping is not a key", "did you mean gradient_clipping?"),
        ({"zero_optimisation": {"stage": 3}}, "zero_optimisation is not", "did you mean zero_optimization?"),
        ({"zero_optimization": {"stag": 3}}, "zero_optimization.stag is not", "did you mean zero_optimization.stage?"),
        (
            {"zero_optimization": {"offload_optimizer": {"pin_memroy": True}}},
            "zero_optimization.offload_optimizer.pin_memroy is not",
            "did you mean zero_optimization.offload_optimizer.pin_memory?",
        ),
        ({"optimizer": {"params": {"learning_rate": 1}}}, "optimizer.params.learning_rate is not", None),
        ({"optimizer": {"params": {"weight_deacy": 1}}}, "weight_deacy is not", "optimizer.params.weight_decay?"),
        ({"stage": 3}, "stage is not a key", "did you mean zero_optimization.stage?"),
        ({"bfloat16": {"enabled": True}}, "bfloat16 is not a key", None),
        ({"zero_optimization": {"cpu_offload": True}}, "zero_optimization.cpu_offload is not a key", None),
        ({"zero_optimization": True}, "zero_optimization is true, but is a section", "stage"),
        ({"gradient_clipping": {"value": 1}}, "gradient_clipping is a section", None),
        ({"wandb": {"enabled": True}}, "wandb has no place in a run", "tracking"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel has no place in a run", "batch"),
    ],
)
def test_a_wrong_key_is_named_with_the_one_that_was_meant(
    config: dict[str, Any], message: str, hint: str | None
) -> None:
    [(said, remedy)] = find_unknown(config)
    assert message in said
    assert (hint or "") in remedy


def test_all_wrong_keys_are_named_at_once() -> None:
    config = {"gradient_cliping": 1.0, "bf16": {"enable": True}, "zero_optimization": {"stage": 3, "overlap": True}}
    assert len(list(find_unknown(config))) == 3
