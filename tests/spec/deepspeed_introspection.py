"""Asks the installed DeepSpeed which keys it reads: its pydantic models, and the sections that it reads by hand."""

import inspect
from typing import Any, get_args

SECTIONS_READ_BY_HAND = (
    "activation_checkpointing",
    "aio",
    "data_types",
    "flops_profiler",
    "optimizer",
    "scheduler",
    "timers",
    "torch_autocast",
)
NOT_ASKED_AT_START = ("sequence_parallel_size",)
"""Read before the dict that is watched here."""
OLD_NAMES = ("bfloat16",)


class Watched(dict):
    """A dict that notes which keys it is asked for, also by ``in config.keys()``."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> "Watched":
        return self


def read_keys() -> dict[str, Any]:
    """All keys as :func:`launcher.spec.deepspeed.keys.known_keys` has them, and those that it leaves out."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CSVConfig, TensorBoardConfig
    from deepspeed.runtime import config as ds
    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    sections = {name: Watched() for name in SECTIONS_READ_BY_HAND}
    sections["optimizer"].update(type="adam")
    sections["scheduler"].update(type="WarmupLR")
    sections["timers"].update(throughput={})
    sections["torch_autocast"].update(dtype="bf16", lower_precision_safe_modules=[])
    config = Watched(train_micro_batch_size_per_gpu=1, **sections)
    ds.DeepSpeedConfig(config)

    gone = {*ds._REMOVED_TOP_LEVEL_CONFIG_KEYS, *OLD_NAMES}
    keys: dict[str, Any] = dict.fromkeys({*config.asked, *NOT_ASKED_AT_START} - gone)
    for name, section in sections.items():
        keys[name] = dict.fromkeys(section.asked)
    keys["timers"]["throughput"] = _fields(DeepSpeedThroughputTimerConfig)
    keys["optimizer"]["params"] = dict.fromkeys(_optimizer_parameters())
    schedules = [getattr(lr_schedules, name) for name in lr_schedules.VALID_LR_SCHEDULES]
    names = {name for schedule in schedules for name in inspect.signature(schedule).parameters}
    keys["scheduler"]["params"] = dict.fromkeys(names - {"optimizer", "last_batch_iteration"})
    models = {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "compile": CompileConfig,
        "comms_logger": CommsLoggerConfig,
        "csv_monitor": CSVConfig,
        "tensorboard": TensorBoardConfig,
    }
    return _sort(keys | {name: _fields(model) for name, model in models.items()})


def _fields(model: Any) -> dict[str, Any]:
    """Names and aliases of a model's fields (it takes both), deprecated ones left out."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if (field.json_schema_extra or {}).get("deprecated"):
            continue
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if hasattr(kind, "model_fields")]
        for key in {name, field.alias or name}:
            found[key] = _fields(inner[0]) if inner else None
    return found


def _optimizer_parameters() -> set[str]:
    """What AdamW and SGD take, torch's or DeepSpeed's own, and what DeepSpeed takes out before it makes them."""
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.runtime.config import ADAM_W_MODE, TORCH_ADAM_PARAM

    kinds = (torch.optim.AdamW, torch.optim.SGD, DeepSpeedCPUAdam, FusedAdam)
    names = {name for kind in kinds for name in inspect.signature(kind).parameters}
    return {*names, ADAM_W_MODE, TORCH_ADAM_PARAM} - {"params", "model_params"}


def _sort(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: _sort(inner) if isinstance(inner, dict) else inner for key, inner in sorted(keys.items())}
