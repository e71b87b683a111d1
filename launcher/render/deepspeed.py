"""Renders ds.json: a DeepSpeed config with what the plan decides written into it as numbers."""

import copy
import json
from collections.abc import Mapping
from typing import Any

from launcher.contract.plan import Plan
from launcher.contract.spec import Model, Spec
from launcher.contract.strategies import ZERO_STAGES
from launcher.spec.deepspeed.owners import AUTO, OFFLOADED, SECTIONS

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""DeepSpeed's words."""


def render_deepspeed(plan: Plan, base: Mapping[str, Any]) -> str:
    """``base`` with the plan's values over it, as JSON text."""
    return json.dumps(merge(plan, base), indent=2) + "\n"


def merge(plan: Plan, base: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the plan's values over it.

    They are numbers rather than ``auto``: transformers' check (HfTrainerDeepSpeedConfig.trainer_config_process) takes
    a number that equals the Trainer's own, and refuses to train on another.
    """
    config = {key: value for key, value in copy.deepcopy(dict(base)).items() if key not in SECTIONS}
    for section in OFFLOADED["all"]:
        if section not in OFFLOADED[plan.spec.parallel.offload]:
            config.get("zero_optimization", {}).pop(section.split(".")[1], None)
    for key, value in _defaults(plan).items():
        if get_value(config, key) in (None, AUTO):
            _set_value(config, key, value)
    for key, value in _decided(plan).items():
        _set_value(config, key, value)
    return config


def get_value(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted ``key``; None where it, or a section around it, is not there."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _decided(plan: Plan) -> dict[str, Any]:
    """Dotted key -> what the plan says, whatever was there."""
    spec = plan.spec
    values: dict[str, Any] = {
        "train_batch_size": plan.batch.global_batch,
        "train_micro_batch_size_per_gpu": plan.batch.micro,
        "gradient_accumulation_steps": plan.batch.accumulation,
        # Said even where it is 0: DeepSpeed 0.19 clips at 1.0 where the key is left out.
        "gradient_clipping": spec.train.max_grad_norm,
        "zero_optimization.stage": ZERO_STAGES[spec.parallel.strategy],
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": _takes_deepspeed_adam(plan),
    }
    for section in OFFLOADED[spec.parallel.offload]:
        values[f"{section}.device"] = "cpu"
    return values | _decided_dtypes(spec)


def _decided_dtypes(spec: Spec) -> dict[str, Any]:
    """Nothing for a script: it makes its own model, and accelerate or the Trainer fills ``auto`` in for it."""
    model = _trained_model(spec)
    if model is None:
        return {}
    storage = _engine_dtype(spec, model)
    values: dict[str, Any] = {"bf16.enabled": storage == "bfloat16", "fp16.enabled": storage == "float16"}
    trainable, computed = _trainable_dtype(model), model.dtype
    if trainable != computed and computed != "float32":
        # DeepSpeed's engine ends an autocast from outside where it has none of its own (torch_autocast.py,
        # autocast_if_enabled). No module is named, so that gradients are reduced in the dtype of their weights.
        values["torch_autocast.enabled"] = True
        values["torch_autocast.dtype"] = computed
        values["torch_autocast.lower_precision_safe_modules"] = []
    else:
        values["torch_autocast.enabled"] = False
    return values


def _defaults(plan: Plan) -> dict[str, Any]:
    """Dotted key -> what holds where the user's config says nothing."""
    model = _trained_model(plan.spec)
    if model is None:
        values: dict[str, Any] = {"bf16.enabled": AUTO, "fp16.enabled": AUTO}
    else:
        # As DDP does: gradients are summed and reduced in the dtype of the trained weights.
        dtype = DTYPES[_trainable_dtype(model)]
        values = {"communication_data_type": dtype, "data_types.grad_accum_dtype": dtype}
    for section in OFFLOADED[plan.spec.parallel.offload]:
        values[f"{section}.pin_memory"] = plan.cluster.accelerator == "cuda"
    return values


def _trained_model(spec: Spec) -> Model | None:
    """The model that the stage makes; None where a script makes one that the launcher does not know."""
    return None if spec.stage == "script" else spec.model


def _trainable_dtype(model: Model) -> str:
    return model.dtype if model.adapter is None else model.adapter.dtype


def _engine_dtype(spec: Spec, model: Model) -> str:
    """The 16-bit mode of the engine: DeepSpeed 0.19 casts every weight to it (engine.py,
    _cast_module_mixed_precision), so it is off where adapter and base differ.

    But it is also the dtype in which zero.Init lays out an unquantized model before its weights are read, and what
    came through zero.Init is not cast any more: there an adapter keeps its own dtype.
    """
    has_zero_init = spec.parallel.strategy == "zero3" and model.quantization == "none"
    return model.dtype if has_zero_init or _trainable_dtype(model) == model.dtype else "float32"


def _takes_deepspeed_adam(plan: Plan) -> bool:
    """Whether accelerate may trade torch's optimizer for DeepSpeed's compiled AdamW when states are offloaded.

    It pays where all weights are trained, on nodes with a GPU. accelerate 1.15 would put it in place of SGD too
    (utils/deepspeed.py, map_pytorch_optim_to_deepspeed).
    """
    model = _trained_model(plan.spec)
    train_all = model is not None and model.adapter is None
    return plan.cluster.accelerator == "cuda" and train_all and plan.spec.train.optimizer == "adamw"


def _set_value(config: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[name] = value
