"""Reads the configuration that peft stores beside an adapter's weights, and says where a spec contradicts it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import read_json
from .spec import Adapter, Complaint, Spec

ADAPTER_CONFIG = "adapter_config.json"
"""In every folder that holds an adapter: a run's ``final/``, or one of its checkpoints."""

COMPARING = ("dpo", "ppo")
"""Stages that compare what they train with what they started from."""


def name_missing_adapter(stage: str) -> Complaint:
    """What is wrong with one of them that trains all weights."""
    message = f"{stage} compares with the model that it started from, and without an adapter that is a second copy"
    return "model.adapter", message, "remove adapter: null; switched off, an adapter leaves the start"


def read_adapter_config(folder: Path) -> dict[str, Any] | None:
    """The stored configuration, or None where ``folder`` holds no adapter.

    Raises:
        ValueError: the file is not JSON, or not an object.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    if config is not None and not isinstance(config, dict):
        raise ValueError("not a JSON object")
    return config


def expect_adapter_config(spec: Spec) -> dict[str, Any] | None:
    """What will stand in the configuration beside a checkpoint of ``spec``, as far as the spec says it; None where no
    adapter is trained. ``all-linear`` stays that, where peft stores the names of the layers."""
    adapter = spec.require_model().adapter
    if adapter is None:
        return None
    return {
        "peft_type": adapter.kind.upper(),
        "task_type": "SEQ_CLS" if spec.stage == "reward" else "CAUSAL_LM",
        "r": adapter.r,
        "lora_alpha": adapter.alpha,
        "target_modules": adapter.target_modules,
    }


def find_contradictions(config: dict[str, Any], adapter: Adapter | None, stage: str) -> Iterator[Complaint]:
    """Where ``model.adapter`` asks for another adapter than the stored one, which is what will be trained further.

    ``all-linear`` cannot be compared without the model: the job does that.
    """
    if config.get("peft_type") != "LORA":
        found = config.get("peft_type") or "no known"
        yield "model.base", f"holds {found} adapter; LoRA adapters can be trained further", "merge it into its base"
        return
    if config.get("task_type") == "SEQ_CLS" and stage != "reward":
        yield "model.base", f"holds the adapter of a reward model, and {stage} trains a language model", _OTHER_FOLDER
    more = [name for name in _BESIDE_LAYERS if config.get(name) not in (None, [], {}, "none")]
    if config.get("task_type") == "SEQ_CLS" and set(config.get("modules_to_save") or ()) <= {"score", "classifier"}:
        more = [name for name in more if name != "modules_to_save"]
    if more:
        message = f"its adapter changes more than the linear layers ({', '.join(more)})"
        yield "model.base", message, "merge it into its base, and name the merged model's folder"
    if adapter is None:
        message = "null asks for full fine-tuning, and model.base holds an adapter to train further"
        yield "model.adapter", message, "remove adapter: null, or name the folder of a full model"
        return
    for name, stored in (("r", config.get("r")), ("alpha", config.get("lora_alpha"))):
        if stored != getattr(adapter, name):
            message = f"{getattr(adapter, name)}, but the adapter in model.base has {stored}"
            yield f"model.adapter.{name}", message, f"set model.adapter.{name}: {stored}"
    asked, targets = adapter.target_modules, config.get("target_modules")
    if asked != "all-linear" and _as_set(asked) != _as_set(targets):
        found = targets if isinstance(targets, str) else f"[{', '.join(sorted(_as_set(targets)))}]"
        message = f"the adapter in model.base is on other layers: {found.strip('[]')}"
        yield "model.adapter.target_modules", message, f"set model.adapter.target_modules: {found}"


_BESIDE_LAYERS = ("bias", "modules_to_save", "trainable_token_indices")
"""What peft leaves as it is when an adapter is switched off, so that dpo would compare with something else."""
_OTHER_FOLDER = "name a checkpoint of an sft or dpo run"


def _as_set(targets: Any) -> set[str]:
    return {targets} if isinstance(targets, str) else set(targets or ())
