"""Puts the adapter on a base: a fresh one from the seed, or a stored one that is trained further."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.contract.adapter import ADAPTER_CONFIG, find_contradictions, read_adapter_config
from launcher.contract.spec import Adapter, Model, Stage

from .errors import JobError
from .model import Task
from .tiny import TINY

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Origin:
    """Where a run starts: the model whose weights are the ``base``, the one whose ``tokenizer`` is used, and the
    folder of the adapter that is trained further, if there is one."""

    base: Model
    tokenizer: Model
    folder: Path | None = None


def find_origin(model: Model, stage: Stage) -> Origin:
    """Look whether ``model.base`` is an adapter's folder (a run's ``final/`` or checkpoint) or a model itself.

    Raises:
        JobError: the folder's adapter is not what the spec asks for, or its base is not to be found.
    """
    folder = Path(model.base)
    try:
        config = read_adapter_config(folder)
    except (OSError, ValueError) as error:
        raise JobError(f"model.base: {folder / ADAPTER_CONFIG}: {error}") from error
    if config is None:
        return Origin(model, model)
    problems = [f"{key}: {message}; {hint}" for key, message, hint in find_contradictions(config, model.adapter, stage)]
    if not (folder / WEIGHTS).is_file():
        problems.append(f"model.base: {folder} has an {ADAPTER_CONFIG} but no {WEIGHTS}")
    if problems:
        raise JobError("\n".join(problems))
    name = find_base(folder, config.get("base_model_name_or_path") or "")
    base = replace(model, base=name, revision=config.get("revision"))
    has_tokenizer = (folder / "tokenizer.json").is_file()
    return Origin(base, replace(base, base=str(folder)) if has_tokenizer else base, folder)


def find_base(folder: Path, name: str, key: str = "model.base") -> str:
    """The base that an adapter names: builtin:tiny, a folder (relative ones beside the adapter first), or a hub id.

    Raises:
        JobError: it is not there, or is itself an adapter; ``key`` is what named ``folder``.
    """
    if name == TINY:
        return name
    for path in (folder / name, Path(name)):
        if name and path.is_dir():
            if (path / ADAPTER_CONFIG).exists():
                raise JobError(f"{key}: the base of the adapter in {folder} is itself an adapter, {path}")
            return str(path.resolve())
    if not name or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise JobError(
            f"{key}: the adapter in {folder} was trained on {name or 'a base without a name'}, which is not here; "
            f"correct base_model_name_or_path in its {ADAPTER_CONFIG}"
        )
    return name


def add_adapter(
    base: "PreTrainedModel", origin: Origin, adapter: Adapter, seed: int, task: Task = "CAUSAL_LM"
) -> "PeftModel":
    """``base`` frozen, with an adapter whose weights have the dtype ``adapter.dtype``: those of ``origin.folder``,
    or fresh ones from ``seed``. A score head is trained and saved with it.

    Raises:
        JobError: a target names no linear layer of the model, or the stored adapter does not fit it.
    """
    import torch
    from peft import LoraConfig, PeftConfig, get_peft_model
    from transformers import set_seed

    if origin.folder is None:
        config: Any = LoraConfig(
            r=adapter.r,
            lora_alpha=adapter.alpha,
            target_modules=_check_targets(base, adapter),
            bias="none",
        )
    else:
        config = PeftConfig.from_pretrained(str(origin.folder))
        config.inference_mode = False
        _check_all_linear(base, config, adapter, origin.folder)
    config.lora_dropout = adapter.dropout
    config.task_type = task
    set_seed(seed)  # the same adapter on every rank, before any rank's own random state
    model: Any = get_peft_model(base, config, autocast_adapter_dtype=False)
    # peft writes the folder that the base was loaded from; for builtin:tiny that was a temporary one.
    config.base_model_name_or_path, config.revision = origin.base.base, origin.base.revision
    cast_trainable(model, getattr(torch, adapter.dtype))
    if origin.folder is not None:
        _load_stored(model, origin.folder)
    return model


def cast_trainable(model: Any, dtype: "torch.dtype") -> None:
    """Give every trainable parameter ``dtype``.

    Several places change it on their own: peft upcasts 16-bit adapters when it loads them, and TRL 1.16 casts the
    adapter of a quantized base to bfloat16 (sft_trainer.py, after arXiv:2305.14314) whatever was asked.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def _load_stored(model: Any, folder: Path) -> None:
    """Copy the stored weights over the fresh ones, each with its own name on both sides."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    stored = load_file(folder / WEIGHTS)
    live = get_peft_model_state_dict(model, save_embedding_layers=False)
    # A language model's adapter has no score head; a reward model starts its own.
    names = {name for name in live if name in stored or not name.endswith("score.weight")}
    wrong = sorted(names ^ set(stored)) or [name for name in names if live[name].shape != stored[name].shape]
    if wrong:
        raise JobError(
            f"model.base: the adapter in {folder} does not fit its base: {len(wrong)} weights differ, {wrong[0]} first"
        )
    set_peft_model_state_dict(model, {**live, **stored})


def _check_targets(base: Any, adapter: Adapter) -> str | list[str]:
    """``adapter.target_modules`` as peft takes them, each known to name a layer.

    peft refuses a list of which nothing matches, but accepts one of which a part does not.
    """
    if adapter.target_modules == "all-linear":
        return "all-linear"
    targets = [adapter.target_modules] if isinstance(adapter.target_modules, str) else adapter.target_modules
    linear = _list_linear(base)
    missing = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if missing:
        kinds = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        raise JobError(f"model.adapter.target_modules: {', '.join(missing)} names no linear layer; there are {kinds}")
    if any(target.rsplit(".", 1)[-1] == "lm_head" for target in targets):
        # TRL multiplies by lm_head.weight directly (add_fused_lm_head), past any adapter on it.
        raise JobError("model.adapter.target_modules: lm_head cannot carry an adapter; leave it out")
    return targets


def _check_all_linear(base: Any, config: Any, adapter: Adapter, folder: Path) -> None:
    """A stored adapter on a part of the layers is not what ``all-linear`` asks for."""
    if adapter.target_modules != "all-linear" or isinstance(config.target_modules, str):
        return
    linear = [name for name in _list_linear(base) if name.rsplit(".", 1)[-1] not in ("lm_head", "score")]
    targets = sorted(config.target_modules)
    if not all(any(f".{name}".endswith(f".{target}") for target in targets) for name in linear):
        raise JobError(
            f"model.adapter.target_modules: all-linear, but the adapter in {folder} is on {', '.join(targets)}; "
            f"set model.adapter.target_modules: [{', '.join(targets)}]"
        )


def _list_linear(base: Any) -> list[str]:
    import torch

    return [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
