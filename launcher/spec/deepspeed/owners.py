"""Says who decides each key of a DeepSpeed config, and which values of a user's contradict the spec."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.contract.spec import Spec
from launcher.contract.strategies import ZERO_STAGES

from .keys import known_keys

AUTO = "auto"

OFFLOADED = {
    "none": (),
    "optimizer": ("zero_optimization.offload_optimizer",),
    "all": ("zero_optimization.offload_optimizer", "zero_optimization.offload_param"),
}
"""``parallel.offload`` -> the sections whose device is the CPU."""

OWNERS = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch",
    "gradient_clipping": "train.max_grad_norm",
    "bf16.enabled": "model.dtype",
    "fp16.enabled": "model.dtype",
    "torch_autocast.enabled": "model.dtype",
    "torch_autocast.dtype": "model.dtype",
    "torch_autocast.lower_precision_safe_modules": "model.dtype",
    "zero_allow_untested_optimizer": "train.optimizer",
    "zero_force_ds_cpu_optimizer": "train.optimizer",
}
"""DeepSpeed's key -> the key of the spec that decides it: in a config of the user's it is ``auto`` or not there."""

SECTIONS = {
    "optimizer": ("train.optimizer", {"adamw": "AdamW", "sgd": "SGD"}),
    "scheduler": (
        "train.scheduler",
        {"cosine": "WarmupCosineLR", "linear": "WarmupDecayLR", "constant": "WarmupLR"},
    ),
}
"""Section -> the key of the spec that decides it, and what its values are called by DeepSpeed.

The rendered file has neither: the Trainer hands torch's own optimizer and schedule to every strategy, so that they
are the same under all of them.
"""

FILLED_LATER = (
    # From the model's hidden size, which the launcher does not know (transformers 5.23, integrations/deepspeed.py,
    # trainer_config_finalize).
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
)
FILLED_HERE = (
    "communication_data_type",
    "data_types.grad_accum_dtype",
    *(f"{section}.pin_memory" for section in OFFLOADED["all"]),
)
"""What :func:`launcher.render.deepspeed.merge` fills in where it is ``auto`` or not there."""


def find_conflicts(spec: Spec, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Message and hint of each value in a user's ``config`` that contradicts ``spec``, or that nothing would fill in.

    Keys of which :func:`launcher.spec.deepspeed.find_unknown` complains are left to it.
    """
    decided: dict[str, tuple[str, object]] = {
        "zero_optimization.stage": ("parallel.strategy", ZERO_STAGES[spec.parallel.strategy])
    }
    for section in OFFLOADED["all"]:
        device = "cpu" if section in OFFLOADED[spec.parallel.offload] else "none"
        decided[f"{section}.device"] = ("parallel.offload", device)
    for key, value in _leaves(config, known_keys()):
        section = key.split(".")[0]
        if section in SECTIONS:
            yield from _section_conflict(spec, key, value)
        elif value == AUTO:
            if key not in {*OWNERS, *FILLED_LATER, *FILLED_HERE, *decided}:
                yield f'{key} is "auto", and nothing fills it in', "write a value, or remove it"
        elif key in OWNERS and (spec.stage != "script" or OWNERS[key] != "model.dtype"):
            yield _complain(key, value, OWNERS[key])
        elif key in decided and value != decided[key][1]:
            yield _complain(key, value, decided[key][0])


def _section_conflict(spec: Spec, key: str, value: Any) -> Iterator[tuple[str, str]]:
    section, _, name = key.partition(".")
    owner, names = SECTIONS[section]
    wanted = names[getattr(spec.train, section)]
    is_same = str(value).lower() == wanted.lower() if name == "type" else value == AUTO
    if not is_same and value != AUTO:
        yield _complain(key, value, owner)


def _complain(key: str, value: Any, owner: str) -> tuple[str, str]:
    hint = f'write "auto" there or remove it; {owner} of the spec sets it'
    return f"{key} is {json.dumps(value)}, but {owner} decides it", hint


def _leaves(config: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that is ``known``, and a section or a value as it is known."""
    for key, value in config.items():
        if key not in known:
            continue
        if isinstance(value, Mapping) and known[key] is not None:
            yield from _leaves(value, known[key], f"{prefix}{key}.")
        elif not isinstance(value, Mapping) and known[key] is None:
            yield f"{prefix}{key}", value
