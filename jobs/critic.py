"""The critic on disk, beside the policy: a folder with its adapter, as peft writes one, and its value head."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapter import WEIGHTS
from .roles import CRITIC, POLICY, VALUE_HEAD, Roles

if TYPE_CHECKING:
    import torch

FOLDER, HEAD = "critic", "value_head.safetensors"


def write_critic(roles: Roles, folder: Path, weights: "dict[str, torch.Tensor]") -> None:
    """Write ``folder/critic/``; ``weights`` are whole, by the names of the live model."""
    from safetensors.torch import save_file

    target = folder / FOLDER
    target.mkdir()
    adapter, head = name_critic(roles, weights)
    if adapter:
        save_file(adapter, target / WEIGHTS, metadata={"format": "pt"})
        roles.model.peft_config[CRITIC].save_pretrained(target)
    save_file(head, target / HEAD, metadata={"format": "pt"})


def load_trained(roles: Roles, folder: Path) -> None:
    """Copy the policy and the critic of a checkpoint over the live ones, whole or sharded."""
    import torch
    from safetensors.torch import load_file
    from torch.distributed.tensor import DTensor, distribute_tensor

    live = {name: weight for name, weight in roles.model.named_parameters() if weight.requires_grad}
    adapter, head = name_critic(roles, live)
    files: list[tuple[Path, Any]] = [
        (folder / WEIGHTS, name_adapter(roles, live, POLICY)),
        (folder / FOLDER / HEAD, head),
    ]
    if adapter:
        files.append((folder / FOLDER / WEIGHTS, adapter))
    with torch.no_grad():
        for path, weights in files:
            stored = load_file(path)
            for name, weight in weights.items():
                value = stored[name].to(weight.device)
                if isinstance(weight, DTensor):
                    value = distribute_tensor(value, weight.device_mesh, weight.placements)
                weight.copy_(value)


def name_critic(roles: Roles, weights: "dict[str, Any]") -> tuple[dict[str, Any], dict[str, Any]]:
    """Of ``weights``, by the names of the live model, those of the critic's adapter and of its head, by the stored
    ones; a critic on the policy's trunk has no adapter."""
    adapter = {} if roles.is_shared else name_adapter(roles, weights, CRITIC)
    (head,) = (weight for name, weight in weights.items() if f".{VALUE_HEAD}." in name)
    return adapter, {"weight": head}


def name_adapter(roles: Roles, weights: "dict[str, Any]", adapter: str) -> dict[str, Any]:
    """Those of one adapter under peft's names."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(roles.model, state_dict=weights, adapter_name=adapter, save_embedding_layers=False)
