"""Renders accelerate.yaml, for people who launch by hand with ``accelerate launch --config_file``."""

import json
from collections.abc import Iterator
from typing import Any

from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

from .environment import MIXED_PRECISION, fsdp_settings

DISTRIBUTED_TYPES = {"fsdp": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def render_accelerate(plan: Plan, paths: RunPaths) -> str:
    """The accelerate configuration that equals the rank environment; ``num_processes`` is the total (accelerate's
    own meaning), and machine_rank, main_process_ip and main_process_port come from the command line of each node."""
    strategy = plan.spec.parallel.strategy
    is_cpu = plan.cluster.accelerator == "cpu"
    values: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": DISTRIBUTED_TYPES.get(strategy) or _ddp_type(plan),
        "downcast_bf16": "no",
        "enable_cpu_affinity": False,
        "main_training_function": "main",
        "mixed_precision": MIXED_PRECISION,
        "num_machines": plan.topology.nodes,
        "num_processes": plan.topology.world_size,
        "rdzv_backend": "static",
        "same_network": True,
        # With use_cpu accelerate 1.15 ignores FSDP and DeepSpeed.
        "use_cpu": is_cpu and strategy == "ddp",
    }
    if strategy == "fsdp":
        values["fsdp_config"] = fsdp_settings(plan)
    elif strategy in DISTRIBUTED_TYPES:
        # Beside deepspeed_config_file accelerate 1.15 refuses mixed_precision (its default is "no"), zero_stage,
        # offload, accumulation and clipping; without a launcher named, several nodes are reached by pdsh over ssh.
        del values["mixed_precision"]
        values["deepspeed_config"] = {
            "deepspeed_config_file": str(paths.ds_config),
            "deepspeed_multinode_launcher": "standard",
        }
    head = [f"# Rendered for {plan.run_id}: equals rank.env, for launching by hand."]
    if is_cpu and (variable := _cpu_variable(plan)):
        head.append(f"# On CPU export {variable} too, which no key of this file stands for.")
    return "\n".join([*head, *_yaml_lines(values)]) + "\n"


def _ddp_type(plan: Plan) -> str:
    # Not MULTI_CPU on CPU: for it accelerate 1.15 starts one process, whatever num_processes says (commands/launch.py,
    # simple_launcher), and that one trains alone without a word.
    return "NO" if plan.topology.world_size == 1 else "MULTI_GPU"


def _cpu_variable(plan: Plan) -> str | None:
    """What ``accelerate launch`` passes on only if it is in its own environment."""
    if plan.spec.parallel.strategy != "ddp":
        return "ACCELERATE_TORCH_DEVICE=cpu"
    return "ACCELERATE_USE_CPU=true" if plan.topology.world_size > 1 else None


def _yaml_lines(values: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A JSON scalar is a YAML scalar too, whatever is in it."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _yaml_lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {json.dumps(value)}"
