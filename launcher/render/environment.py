"""Renders the environment of every rank, before its rank numbers."""

from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.strategies import ZERO_STAGES

MIXED_PRECISION = "no"
"""accelerate's own mixed precision, off under every strategy: dtypes are set on the weights and the jobs autocast.

accelerate 1.15 would do something else under each one: outputs cast to float32 under DDP (prepare_model), trainable
weights upcast and gradients reduced in 16 bits under FSDP2 (fsdp2_prepare_model, set_mixed_precision).
"""


def rank_environment(plan: Plan, paths: RunPaths) -> dict[str, str]:
    """Variable -> value; the profile's ``env`` has the last word. Holds no secret."""
    env = {
        # accelerate reads these when its state is created; TrainingArguments would come too late,
        # because TRL loads the model before the Accelerator exists.
        **strategy_environment(plan, paths),
        "OMP_NUM_THREADS": str(plan.topology.cpus_per_rank or 1),
        "TOKENIZERS_PARALLELISM": "false",  # forked data-loader workers deadlock with its threads
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",  # the libraries' talk among themselves
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if plan.spec.stage == "script":
        env |= script_environment(plan, paths)
    elif plan.cluster.accelerator == "cpu":
        # bitsandbytes loads inductor through torch.compile; without it a rank starts a second earlier.
        env["TORCHDYNAMO_DISABLE"] = "1"
    if not plan.cluster.internet:
        # A hub call on a node without a route hangs until its time-out, on every rank.
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if plan.cluster.network_interface:
        env |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), plan.cluster.network_interface)
    if plan.cluster.scratch:
        env["TMPDIR"] = plan.cluster.scratch
    return env | plan.cluster.env


def script_environment(plan: Plan, paths: RunPaths) -> dict[str, str]:
    """What a script of the user's own is told of its plan (docs/own-script.md); an empty value is none."""
    return {
        "LOCAL_WORLD_SIZE": str(plan.topology.ranks_per_node),
        "TUNEYARD_RUN_DIR": str(paths.root),
        "TUNEYARD_MICRO_BATCH": str(plan.batch.micro),
        "TUNEYARD_ACCUMULATION": str(plan.batch.accumulation),
        "TUNEYARD_GLOBAL_BATCH": str(plan.batch.global_batch),
        "TUNEYARD_MAX_STEPS": str(plan.spec.train.max_steps or ""),
    }


def strategy_environment(plan: Plan, paths: RunPaths) -> dict[str, str]:
    """accelerate's own variables, as ``accelerate launch`` would export them for the rendered accelerate.yaml."""
    strategy = plan.spec.parallel.strategy
    env = {"ACCELERATE_MIXED_PRECISION": MIXED_PRECISION}
    if plan.cluster.accelerator == "cpu":
        # ACCELERATE_USE_CPU makes accelerate 1.15 run FSDP and DeepSpeed as plain DDP, without a word.
        env |= {"ACCELERATE_USE_CPU": "true"} if strategy == "ddp" else {"ACCELERATE_TORCH_DEVICE": "cpu"}
    if strategy == "fsdp":
        env |= {"ACCELERATE_USE_FSDP": "true"}
        env |= {name.upper(): _word(value) for name, value in fsdp_settings(plan).items()}
    elif strategy in ZERO_STAGES:
        env |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(paths.ds_config)}
    return env


def fsdp_settings(plan: Plan) -> dict[str, str | int | bool]:
    """FSDP2 in the words of accelerate.yaml; in upper case they are its environment variables."""
    return {
        "fsdp_version": 2,
        # One group for each layer class that the model names itself (``_no_split_modules``).
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        # Parameters together with gradients and optimizer states; FSDP2 has no other kind.
        "fsdp_offload_params": plan.spec.parallel.offload == "all",
        # Off, accelerate's launcher has it on: rank 0 alone would read the weights, and for 4-bit ones accelerate 1.15
        # leaves out the broadcast to the other ranks (fsdp2_prepare_model).
        "fsdp_cpu_ram_efficient_loading": False,
        # train.gradient_checkpointing does it under every strategy; both at once raise.
        "fsdp_activation_checkpointing": False,
    }


def _word(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
