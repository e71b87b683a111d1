"""Renders accelerate.yaml, for people who launch by hand with ``accelerate launch --config_file``."""

import json

from launcher.contract.plan import Plan

from .environment import mixed_precision


def render_accelerate(plan: Plan) -> str:
    """The accelerate configuration that equals the rank environment; ``num_processes`` is the total (accelerate's
    own meaning), and machine_rank, main_process_ip and main_process_port come from the command line of each node."""
    is_cpu = plan.cluster.accelerator == "cpu"
    kind = "NO" if plan.topology.world_size == 1 else "MULTI_CPU" if is_cpu else "MULTI_GPU"
    values = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": kind,
        "downcast_bf16": "no",
        "enable_cpu_affinity": False,
        "main_training_function": "main",
        "mixed_precision": mixed_precision(plan),
        "num_machines": plan.topology.nodes,
        "num_processes": plan.topology.world_size,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": is_cpu,
    }
    lines = (f"{key}: {json.dumps(value)}" for key, value in values.items())
    return f"# Rendered for {plan.run_id}: equals rank.env, for launching by hand.\n" + "\n".join(lines) + "\n"
