"""What a user can ask for: every key of the experiment file with its type, default, bounds and one sentence of help.

``launcher.spec`` validates user text against these classes (pydantic reads the field metadata), the plan carries
them, and jobs read them back; so a key is declared once.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

FORBID_UNKNOWN = {"extra": "forbid"}
"""What pydantic reads as ``__pydantic_config__``: an unknown key is an error, never dropped."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DURATION_PATTERN = r"^(\d+(\.\d+)?[smhd]|(\d+-)?\d{1,3}:\d{2}:\d{2})$"
SLURM_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@+-]*(,[A-Za-z0-9][A-Za-z0-9._@+-]*)*$"
"""Partitions, accounts and qualities of service: what can stand in an sbatch line and mean nothing else."""
CONSTRAINT_PATTERN = r"^[A-Za-z0-9(\[][A-Za-z0-9._&|,*()\[\]-]*$"

Stage = Literal["sft", "reward", "dpo", "ppo", "script", "prepare", "pretrain", "evaluate", "export"]
Strategy = Literal["ddp", "fsdp", "zero2", "zero3"]
DType = Literal["float32", "bfloat16", "float16"]
Complaint = tuple[str, str, str]
"""What is wrong with a spec: dotted key, message, hint."""
DpoLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
]
"""TRL's losses of one pair each. Its aot, aot_unpaired (sorted over the micro batch) and sft (a mean over its tokens)
would depend on how a batch is cut into micro batches."""


def _key(default: Any, help: str, **bounds: Any) -> Any:
    """A field with its help and the bounds that pydantic knows by these names (gt, ge, lt, le, pattern, ...)."""
    metadata = {"description": help, **bounds}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The trainable low-rank adapter on a frozen base (LoRA, arXiv:2106.09685)."""

    __pydantic_config__ = FORBID_UNKNOWN

    kind: Literal["lora"] = _key("lora", "Kind of adapter.")
    r: int = _key(16, "Rank of the update matrices.", ge=1, le=4096)
    alpha: int = _key(32, "Scale: the update is multiplied by alpha / r.", ge=1)
    dropout: float = _key(0.05, "Dropout before the adapter; reward, dpo and ppo train without.", ge=0, lt=1)
    target_modules: str | list[str] = _key("all-linear", "all-linear, or names of the layers that get an adapter.")
    dtype: DType = _key("float32", "Dtype of the adapter's weights.")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The base model, how it is stored, and what is trained on it."""

    __pydantic_config__ = FORBID_UNKNOWN

    base: str = field(
        metadata={"description": "Folder of a model or adapter, hub id, or builtin:tiny.", "min_length": 1}
    )
    revision: str | None = _key(None, "Commit, tag or branch of a hub model.")
    quantization: Literal["nf4", "int8", "none"] = _key("nf4", "How the frozen base is stored.")
    dtype: DType = _key("bfloat16", "Dtype of the base's unquantized weights and of the computation.")
    attn_implementation: str | None = _key(
        None, "Attention kernel by transformers' name (sdpa, flash_attention_2, ...)."
    )
    trust_remote_code: bool = _key(False, "Run code that comes with the model; needs a pinned revision.")
    adapter: Adapter | None = _key(Adapter(), "The adapter to train; null is full fine-tuning.")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the rows come from and how they become text."""

    __pydantic_config__ = FORBID_UNKNOWN

    train: str | list[str] = field(metadata={"description": "File, list of files, folder, or hub id."})
    eval: str | float | None = _key(0.05, "File, or the fraction of the rows split off with the seed; null for none.")
    format: Literal["alpaca", "messages", "sharegpt", "prompt-completion", "text", "preference", "prompt"] = _key(
        "alpaca", "Layout of a row."
    )
    columns: dict[str, str] = _key({}, "Renames, our name: the file's name.")
    system: str | None = _key(None, "System prompt for rows without one.")
    chat_template: str | None = _key(None, "Jinja text or file that replaces the tokenizer's chat template.")
    max_length: int = _key(512, "Tokens per sequence; longer rows are truncated.", ge=8)
    on_bad_row: Literal["fail", "skip"] = _key("fail", "Stop at a bad row, or skip it, counted and listed.")


@dataclass(frozen=True, kw_only=True)
class Script:
    """A training script of the user's own; see docs/own-script.md."""

    __pydantic_config__ = FORBID_UNKNOWN

    path: str = field(metadata={"description": "Python file; every rank runs it.", "min_length": 1})
    args: list[str] = _key([], "Its arguments, as they are written; numbers need no quotes.")
    sources: str | None = _key(
        None, "Folder that is copied at submit and worked in, with the script in it; null is the script's own."
    )


@dataclass(frozen=True, kw_only=True)
class Train:
    """Batch, optimizer, schedule, and when to save."""

    __pydantic_config__ = FORBID_UNKNOWN

    micro_batch: int = _key(2, "Sequences (reward, dpo: pairs) per rank and forward pass.", ge=1)
    global_batch: int = _key(16, "Sequences (pairs) per optimizer step; accumulation is derived.", ge=1)
    learning_rate: float = _key(2e-4, "Peak learning rate.", gt=0, lt=10, allow_inf_nan=False)
    optimizer: Literal["adamw", "sgd"] = _key("adamw", "Optimizer.")
    weight_decay: float = _key(0.0, "Decoupled weight decay.", ge=0, lt=10, allow_inf_nan=False)
    max_grad_norm: float = _key(1.0, "Clip the global gradient norm; 0: don't.", ge=0, allow_inf_nan=False)
    scheduler: Literal["cosine", "linear", "constant"] = _key("cosine", "Learning-rate schedule after the warmup.")
    warmup_ratio: float | None = _key(None, "Share of the steps that warm up.", ge=0, lt=1)
    warmup_steps: int | None = _key(None, "Steps that warm up.", ge=0)
    max_steps: int | None = _key(None, "Optimizer steps in all.", ge=1)
    epochs: float | None = _key(None, "Passes over the training rows, instead of max_steps.", gt=0, allow_inf_nan=False)
    loss_on: Literal["assistant", "completion", "all"] = _key("assistant", "Tokens that count in the loss.")
    packing: bool = _key(False, "Pack several rows into one sequence.")
    gradient_checkpointing: bool = _key(True, "Recompute activations in the backward pass to save memory.")
    save_every_steps: int | None = _key(20, "Steps between checkpoints; null: none but the final save.", ge=1)
    eval_every_steps: int | None = _key(20, "Steps between evaluations; null: at the start and the end.", ge=1)
    keep_last: int = _key(2, "Checkpoints to keep.", ge=1)
    keep_best: str | None = _key(
        "eval_loss",
        "Metric whose best checkpoint is kept too: the lowest if its name ends in loss, perplexity or error, else the "
        "highest; null: none.",
    )
    on_nonfinite: Literal["stop", "skip", "rollback"] = _key(
        "stop",
        "When a loss or gradient is no number: stop; skip the step, five in a row at most; or go on from the newest "
        "checkpoint as a new attempt.",
    )
    seed: int = _key(42, "Seed of weights, order and dropout.", ge=0, lt=2**32)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How the ranks share the model."""

    __pydantic_config__ = FORBID_UNKNOWN

    strategy: Strategy = _key("ddp", "How weights, gradients and optimizer states are spread over the ranks.")
    offload: Literal["none", "optimizer", "all"] = _key("none", "What is kept in host memory.")
    ds_config: str | None = _key(None, "A DeepSpeed JSON of your own to merge over.")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What is asked of the cluster."""

    __pydantic_config__ = FORBID_UNKNOWN

    nodes: int = _key(1, "Nodes.", ge=1, le=65536)
    gpus_per_node: int | None = _key(None, "GPUs (on cpu: ranks) per node; default the profile's.", ge=1, le=64)
    time: str = _key("1h", "Wall-time limit: 90s, 30m, 4h, 2-12:00:00.", pattern=DURATION_PATTERN)
    partition: str | None = _key(None, "Slurm partition; default the profile's.", pattern=SLURM_NAME_PATTERN)
    account: str | None = _key(None, "Slurm account; default the profile's.", pattern=SLURM_NAME_PATTERN)
    qos: str | None = _key(None, "Slurm quality of service.", pattern=SLURM_NAME_PATTERN)
    constraint: str | None = _key(None, "Slurm node features.", pattern=CONSTRAINT_PATTERN)
    cpus_per_gpu: int | None = _key(None, "CPU cores per rank.", ge=1)
    mem_gb: float | None = _key(None, "Host memory per node in GB.", gt=0, allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What is tried when an attempt fails; preemptions, time limits and lost nodes have budgets of their own."""

    __pydantic_config__ = FORBID_UNKNOWN

    max_attempts: int = _key(
        3, "Attempts that may fail in a row without a newer checkpoint; 1: a failure is final.", ge=1, le=100
    )
    hang_seconds: int | None = _key(
        600,
        "Seconds without a micro batch, an evaluation batch or a token of a rollout after which the ranks count as "
        "hung; loading, saving and what scores beside the model have two hours; null: never. Scripts are not watched.",
        ge=10,
    )


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where metrics go beside the run's own ledger."""

    __pydantic_config__ = FORBID_UNKNOWN

    wandb: Literal["online", "offline", "disabled"] = _key("offline", "Weights & Biases mode.")
    project: str = _key("tuneyard", "W&B project.", min_length=1)
    entity: str | None = _key(None, "W&B user or team.")
    tags: list[str] = _key([], "W&B tags.")


@dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward stage: a score for a conversation, learned from pairs (Bradley and Terry 1952; arXiv:2203.02155)."""

    __pydantic_config__ = FORBID_UNKNOWN

    center: float = _key(
        0.0,
        "Weight of the squared sum of both scores, which keeps them around zero (arXiv:2312.09244, eq. 2).",
        ge=0,
        allow_inf_nan=False,
    )


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """The dpo stage: direct preference optimization (arXiv:2305.18290)."""

    __pydantic_config__ = FORBID_UNKNOWN

    beta: float = _key(0.1, "How strongly the policy is held to the reference.", gt=0, allow_inf_nan=False)
    loss_type: DpoLoss = _key("sigmoid", "Loss of a pair, by TRL's names; sigmoid is that of the paper.")
    label_smoothing: float = _key(0.0, "robust, exo_pair: assumed share of swapped pairs.", ge=0, lt=0.5)
    precompute_reference: bool = _key(False, "Ask the reference once, before training; pays off over several epochs.")


@dataclass(frozen=True, kw_only=True)
class Ppo:
    """The ppo stage: proximal policy optimization from a reward (arXiv:1707.06347, arXiv:2203.02155).

    A step is one minibatch, of ``train.global_batch`` sequences; each rollout gives ``epochs * rollout_batch /
    global_batch`` of them.
    """

    __pydantic_config__ = FORBID_UNKNOWN

    reward: str | None = _key(
        None, "What scores a response: a reward run's final/ or any reward model, FILE.py:FUNCTION, or builtin:length."
    )
    critic: Literal["own", "shared"] = _key(
        "own", "The value model: an adapter and head of its own, or a head on the policy's trunk."
    )
    rollout_batch: int | None = _key(
        None, "Prompts answered per rollout, a multiple of train.global_batch; null: the same.", ge=1
    )
    epochs: int = _key(4, "Passes over each rollout.", ge=1)
    max_new_tokens: int = _key(128, "Tokens of a response at most; data.max_length has room for prompt and it.", ge=1)
    temperature: float = _key(1.0, "Of sampling and of every log-probability.", gt=0, allow_inf_nan=False)
    stop_token: str | None = _key(None, "Token that ends a response; null: the end of sequence.", min_length=1)
    missing_eos_penalty: float | None = _key(
        None, "Taken off the score of a response without an end.", ge=0, allow_inf_nan=False
    )
    kl_estimator: Literal["k1", "k3"] = _key("k1", "Estimator of the KL divergence per token.")
    kl_coef: float = _key(0.05, "Weight of the KL divergence from the reference in the reward.", ge=0, lt=100)
    kl_target: float | None = _key(
        None, "Adapt kl_coef to this divergence per sequence (arXiv:1909.08593, sec. 2.2); null: fixed.", gt=0
    )
    kl_horizon: int = _key(10_000, "Sequences over which kl_coef adapts.", ge=1)
    stop_kl: float | None = _key(
        None, "Leave a rollout when the policy has moved this far from the one that wrote it; null: never.", gt=0
    )
    normalize_reward: bool = _key(False, "Divide scores by their running standard deviation, mean taken off.")
    clip_reward: float | None = _key(None, "Clip scores to plus or minus this.", gt=0, allow_inf_nan=False)
    gamma: float = _key(1.0, "Discount per token.", gt=0, le=1)
    gae_lambda: float = _key(0.95, "Of generalized advantage estimation (arXiv:1506.02438).", ge=0, le=1)
    whiten_advantages: bool = _key(True, "Advantages of a rollout get mean 0 and standard deviation 1.")
    clip_range: float = _key(0.2, "Clip of the policy's ratio: 1 - this to 1 + this.", gt=0, lt=1)
    value_clip_range: float | None = _key(0.2, "Clip of a value's change; null: none.", gt=0, allow_inf_nan=False)
    value_coef: float = _key(0.1, "Weight of the value loss.", ge=0, allow_inf_nan=False)
    entropy_coef: float = _key(0.0, "Weight of the entropy bonus.", ge=0, allow_inf_nan=False)
    critic_learning_rate: float | None = _key(
        None, "Peak learning rate of the critic; null: train.learning_rate.", gt=0, lt=10
    )
    engine: Literal["builtin", "vllm"] = _key(
        "builtin", "What writes the responses; vllm, where it is installed, holds the base a second time on each rank."
    )
    generation_batch: int = _key(8, "Responses that a rank writes at once.", ge=1)
    gather_for_rollout: bool = _key(
        True,
        "fsdp, zero3, engine builtin: hold the whole weights during a rollout, instead of gathering them for every "
        "token.",
    )


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One experiment as the user asked for it, defaults filled in, paths absolute."""

    __pydantic_config__ = FORBID_UNKNOWN

    name: str = field(metadata={"description": "Name of the run.", "pattern": NAME_PATTERN})
    stage: Stage = field(metadata={"description": "What the run does."})
    cluster: str | None = _key(None, "Cluster profile; --cluster and TUNEYARD_CLUSTER come first.")
    model: Model | None = _key(
        None, "The base model, how it is stored, and what is trained on it; required but for stage: script."
    )
    data: Data | None = _key(None, "Where the rows come from and how they become text; required but for stage: script.")
    train: Train = _key(Train(), "Batch, optimizer, schedule, and when to save.")
    parallel: Parallel = _key(Parallel(), "How the ranks share the model.")
    resources: Resources = _key(Resources(), "What is asked of the cluster.")
    recovery: Recovery = _key(Recovery(), "What is tried when an attempt fails.")
    tracking: Tracking = _key(Tracking(), "Where metrics go beside the run's own ledger.")
    reward: Reward = _key(Reward(), "Settings of the reward stage.")
    dpo: Dpo = _key(Dpo(), "Settings of the dpo stage.")
    ppo: Ppo = _key(Ppo(), "Settings of the ppo stage.")
    script: Script | None = _key(None, "The script of the script stage.")
    stages: dict[str, Any] = _key({}, "A pipeline: stage name -> the sections it changes.")
    sweep: dict[str, Any] = _key({}, "A sweep: grid or zip of keys -> values.")

    def require_model(self) -> Model:
        """The model section, which every stage but script has.

        Raises:
            ValueError: there is none.
        """
        if self.model is None:
            raise ValueError(f"stage {self.stage}: the spec has no model section")
        return self.model

    def require_data(self) -> Data:
        """The data section, which every stage but script has.

        Raises:
            ValueError: there is none.
        """
        if self.data is None:
            raise ValueError(f"stage {self.stage}: the spec has no data section")
        return self.data
