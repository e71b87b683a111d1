"""Renders the environment of every rank, before its rank numbers."""

from launcher.contract.plan import Plan


def rank_environment(plan: Plan) -> dict[str, str]:
    """Variable -> value; the profile's ``env`` has the last word. Holds no secret."""
    env = {
        # accelerate reads these when its state is created; TrainingArguments would come too late,
        # because TRL loads the model before the Accelerator exists.
        **strategy_environment(plan),
        "OMP_NUM_THREADS": str(plan.topology.cpus_per_rank or 1),
        "TOKENIZERS_PARALLELISM": "false",  # forked data-loader workers deadlock with its threads
        "PYTHONUNBUFFERED": "1",
    }
    if not plan.cluster.internet:
        # A hub call on a node without a route hangs until its time-out, on every rank.
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if plan.cluster.network_interface:
        env |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), plan.cluster.network_interface)
    if plan.cluster.scratch:
        env["TMPDIR"] = plan.cluster.scratch
    return env | plan.cluster.env


def strategy_environment(plan: Plan) -> dict[str, str]:
    """accelerate's own variables, as ``accelerate launch`` would export them for the rendered accelerate.yaml."""
    env = {"ACCELERATE_MIXED_PRECISION": mixed_precision(plan)}
    if plan.cluster.accelerator == "cpu":
        env["ACCELERATE_USE_CPU"] = "true"
    return env


def mixed_precision(plan: Plan) -> str:
    """accelerate's word for the computation's dtype; ``no`` on CPU, where dtypes are set on the model."""
    if plan.cluster.accelerator == "cpu":
        return "no"
    return {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}[plan.spec.model.dtype]


def format_environment(env: dict[str, str]) -> str:
    """``KEY=VALUE`` lines, read by :func:`jobs.supervisor.read_environment`.

    Raises:
        ValueError: a value holds a newline, which this format can't carry.
    """
    for name, value in env.items():
        if "\n" in value:
            raise ValueError(f"{name}: a newline in an environment variable's value")
    return "".join(f"{name}={value}\n" for name, value in sorted(env.items()))
