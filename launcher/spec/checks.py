"""Checks keys against each other, as far as that needs neither a cluster nor the rows of a file."""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePath
from typing import Any

from launcher.contract.adapter import COMPARING, find_contradictions, name_missing_adapter, read_adapter_config
from launcher.contract.pipeline import REFERENCE_START
from launcher.contract.spec import Complaint, Dpo, Ppo, Reward, Spec
from launcher.contract.strategies import LEGAL_OFFLOAD

from .durations import parse_minutes
from .not_yet import find_not_yet
from .parents import find_misfits
from .paths import BUILTIN_MODELS, is_hub_id
from .schema import list_keys

TEXT_FORMATS = ("alpaca", "messages", "sharegpt", "prompt-completion", "text")
FORMATS = {"sft": TEXT_FORMATS, "reward": ("preference",), "dpo": ("preference",), "ppo": ("prompt",)}
"""Stage -> the layouts of a row that it can learn from."""
VLLM_MAX_RANK, VLLM_MIN_TEMPERATURE = 512, 0.01
"""vLLM 0.32, config/lora.py and sampling_params.py."""
_SECTIONS: dict[str, Any] = {"reward": Reward(), "dpo": Dpo(), "ppo": Ppo()}
"""Those of one stage, by its name, as they are where nothing is set."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
# How the hub's cache names the folder of one commit (huggingface_hub, file_download.py).
_SNAPSHOT = re.compile(r"/snapshots/[0-9a-f]{40}/?$")


def find_complaints(spec: Spec, bad: Collection[str], parent: Spec | None = None) -> Iterator[Complaint]:
    """What is wrong between the keys of ``spec``; a check that looks at a key in ``bad`` is left out.

    ``parent`` is the stage whose checkpoint is its ``model.base``.
    """
    complained = set(bad)
    checks = [(check(spec), _LOOKS_AT.get(check, ())) for check in _CHECKS]
    if parent is not None:
        checks.append((find_misfits(spec, parent), ("stage", "model.base", "model.revision")))
    for found, looks_at in checks:
        for key, message, hint in found:
            looked_at = (key, *looks_at)
            if not any(_overlap(name, other) for name in looked_at for other in complained):
                complained.add(key)
                yield key, message, hint


def _overlap(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.")


def _check_name(spec: Spec) -> Iterator[Complaint]:
    if re.fullmatch(r"last(-\d+)?", spec.name):
        yield "name", f"{spec.name} is how commands call the newest runs", "choose another name"


def _check_sections(spec: Spec) -> Iterator[Complaint]:
    """A script says itself what it trains on; the other stages need a model and data."""
    if spec.stage == "script":
        if spec.script is None:
            yield "script.path", "is missing", list_keys(Spec)["script.path"].help
        return
    for name, section in (("model.base", spec.model), ("data.train", spec.data)):
        if section is None:
            yield name, "is missing", list_keys(Spec)[name].help
    if spec.script is not None:
        yield "script", f"stands beside stage: {spec.stage}, which runs no script", "remove it, or write stage: script"


def _check_sources(spec: Spec) -> Iterator[Complaint]:
    script = spec.script
    if script and script.sources is not None and not PurePath(script.path).is_relative_to(script.sources):
        message = f"{script.path} does not lie in script.sources, {script.sources}"
        yield "script.path", message, "what a run needs of a script is copied with it: name a folder around it"


def _check_length(spec: Spec) -> Iterator[Complaint]:
    steps, epochs = spec.train.max_steps, spec.train.epochs
    if steps is None and epochs is None and spec.stage != "script":
        yield (
            "train.max_steps",
            "neither max_steps nor epochs says when to stop",
            "add max_steps: 60, or epochs: 3",
        )
    if steps is not None and epochs is not None:
        yield "train.epochs", "stands beside max_steps", "keep one of them; `train.max_steps=null` clears the other"


def _check_warmup(spec: Spec) -> Iterator[Complaint]:
    train = spec.train
    if train.warmup_ratio is not None and train.warmup_steps is not None:
        yield "train.warmup_steps", "stands beside warmup_ratio", "keep one of them; null clears the other"
    elif train.warmup_steps and train.max_steps and train.warmup_steps >= train.max_steps:
        message = f"a warmup of {train.warmup_steps} steps never ends in {train.max_steps} steps"
        yield "train.warmup_steps", message, f"at most {train.max_steps - 1}; 3 to 10 % of the steps is usual"


def _check_full_training(spec: Spec) -> Iterator[Complaint]:
    if spec.model and spec.model.adapter is None and spec.model.quantization != "none":
        message = f"weights stored as {spec.model.quantization} cannot be trained themselves"
        yield "model.adapter", message, "for full fine-tuning add model.quantization: none; else keep an adapter"


def _check_revision(spec: Spec) -> Iterator[Complaint]:
    """A checkpoint of an earlier stage knows the revision of its base; one that all stages share is that stage's."""
    if spec.model and REFERENCE_START in spec.model.base:
        return
    if spec.model and spec.model.revision is not None and not is_hub_id(spec.model.base):
        yield "model.revision", "only a model from the hub has revisions, and model.base is not one", "remove it"


def _check_remote_code(spec: Spec) -> Iterator[Complaint]:
    if spec.model is None or not spec.model.trust_remote_code or REFERENCE_START in spec.model.base:
        return
    base, revision = spec.model.base, spec.model.revision or ""
    if base in BUILTIN_MODELS:
        yield "model.trust_remote_code", f"{base} comes without code", "remove it"
    elif is_hub_id(base) and not _COMMIT.fullmatch(revision):
        hint = "set model.revision to the 40 hexadecimal digits of a commit that you have read"
        yield "model.trust_remote_code", "code from the hub needs a pinned revision", hint
    elif not is_hub_id(base) and not _SNAPSHOT.search(base):
        hint = "give the hub id with model.revision, or the hub cache's folder .../snapshots/<commit>"
        yield "model.trust_remote_code", "code in a folder of no known revision is not run", hint


def _check_data(spec: Spec) -> Iterator[Complaint]:
    if spec.data is None:
        return
    if spec.data.train in ("", []) or (isinstance(spec.data.train, list) and "" in spec.data.train):
        yield "data.train", "must not be empty", "name a file, a list of files, a folder or a hub id"
    if isinstance(spec.data.eval, int | float) and not 0 < spec.data.eval < 1:
        hint = "a fraction such as 0.05, a file, or null for no evaluation"
        yield "data.eval", f"a fraction lies between 0 and 1, got {spec.data.eval}", hint
    if spec.data.eval == "":
        yield "data.eval", "must not be empty", "a fraction such as 0.05, a file, or null for no evaluation"


def _check_loss(spec: Spec) -> Iterator[Complaint]:
    if spec.data and spec.data.format == "text" and spec.train.loss_on != "all":
        message = f"rows of plain text have no {spec.train.loss_on} part"
        yield "train.loss_on", message, "add train.loss_on: all"


def _check_format(spec: Spec) -> Iterator[Complaint]:
    formats = FORMATS.get(spec.stage)
    if formats is not None and spec.data and spec.data.format not in formats:
        message = f"{spec.stage} does not learn from {spec.data.format} rows"
        yield "data.format", message, f"{spec.stage} reads {', '.join(formats)}"


def _check_pairs(spec: Spec) -> Iterator[Complaint]:
    """What means something for single sequences only."""
    if spec.train.packing and spec.stage in ("reward", "dpo"):
        yield "train.packing", f"{spec.stage} takes pairs, which are not packed", "remove it, or packing: false"
    if spec.train.packing and spec.stage == "ppo":
        yield "train.packing", "ppo writes its sequences itself", "remove it, or packing: false"


def _check_adapter(spec: Spec) -> Iterator[Complaint]:
    model = spec.model
    if spec.stage in COMPARING and model and model.adapter is None and model.quantization == "none":
        yield name_missing_adapter(spec.stage)


def _check_ppo(spec: Spec) -> Iterator[Complaint]:
    if spec.stage != "ppo":
        return
    ppo, batch = spec.ppo, spec.train.global_batch
    if ppo.reward is None:
        yield "ppo.reward", "is missing", list_keys(Spec)["ppo.reward"].help
    if ppo.rollout_batch is not None and ppo.rollout_batch % batch:
        near = max(1, round(ppo.rollout_batch / batch)) * batch
        message = f"{ppo.rollout_batch} is no multiple of train.global_batch, {batch}"
        yield "ppo.rollout_batch", message, f"a rollout is learned from in whole minibatches: {near}, for example"
    if spec.data and ppo.max_new_tokens >= spec.data.max_length:
        message = f"{ppo.max_new_tokens} tokens leave no room for a prompt in data.max_length, {spec.data.max_length}"
        yield "ppo.max_new_tokens", message, "data.max_length holds prompt and response"


def _check_kl_control(spec: Spec) -> Iterator[Complaint]:
    ppo, size = spec.ppo, spec.ppo.rollout_batch or spec.train.global_batch
    if spec.stage != "ppo" or ppo.kl_target is None:
        return
    if ppo.kl_coef == 0:
        yield "ppo.kl_target", "adapts ppo.kl_coef by factors, and 0 stays 0", "set ppo.kl_coef above 0"
    if ppo.kl_horizon < size:
        # A fifth of their quotient is the largest step, and from five on the coefficient would change its sign.
        message = f"{ppo.kl_horizon} sequences are fewer than a rollout has, {size}"
        yield "ppo.kl_horizon", message, "kl_coef adapts over several rollouts: 10000, for example"


def _check_engine(spec: Spec) -> Iterator[Complaint]:
    model, hint = spec.model, "set ppo.engine: builtin"
    if spec.stage != "ppo" or spec.ppo.engine != "vllm" or model is None:
        return
    if model.quantization != "none":
        message = f"vllm would answer by the whole base, and model.quantization: {model.quantization} is learned from"
        yield "ppo.engine", message, f"set model.quantization: none, or {hint}"
    elif model.base in BUILTIN_MODELS:
        yield "ppo.engine", f"{model.base} is smaller than anything that vllm takes", hint
    elif model.adapter and model.adapter.r > VLLM_MAX_RANK:
        yield "ppo.engine", f"vllm takes adapters up to rank {VLLM_MAX_RANK}, and model.adapter.r is larger", hint
    elif spec.ppo.temperature < VLLM_MIN_TEMPERATURE:
        yield "ppo.engine", f"vllm takes a temperature below {VLLM_MIN_TEMPERATURE} for {VLLM_MIN_TEMPERATURE}", hint


def _check_stage_sections(spec: Spec) -> Iterator[Complaint]:
    for name, default in _SECTIONS.items():
        if name != spec.stage and getattr(spec, name) != default:
            yield (
                name,
                f"settings of the {name} stage, and this stage is {spec.stage}",
                "remove it; in a pipeline it stands in its stage",
            )


def _check_dpo(spec: Spec) -> Iterator[Complaint]:
    loss, smoothing = spec.dpo.loss_type, spec.dpo.label_smoothing
    if spec.stage != "dpo":
        return
    if smoothing and loss not in ("robust", "exo_pair"):
        message = f"the loss {loss} does not use it"
        yield "dpo.label_smoothing", message, "remove it, or set dpo.loss_type: robust"
    if loss == "exo_pair" and not smoothing:
        yield "dpo.label_smoothing", "the loss exo_pair needs one above 0", "set dpo.label_smoothing: 0.001"


def _check_stored_adapter(spec: Spec) -> Iterator[Complaint]:
    """``model.base`` may be the folder of an adapter, to be trained further; one that a stage before writes is not
    there yet, and the job checks it."""
    if spec.model is None:
        return
    try:
        config = read_adapter_config(Path(spec.model.base))
    except (OSError, ValueError) as error:
        yield "model.base", f"{spec.model.base}: adapter_config.json: {error}", "name the folder that peft wrote"
        return
    if config is not None:
        yield from find_contradictions(config, spec.model.adapter, spec.stage)


def _check_offload(spec: Spec) -> Iterator[Complaint]:
    legal = LEGAL_OFFLOAD[spec.parallel.strategy]
    if spec.parallel.offload not in legal:
        cells = "; ".join(f"{strategy}: {', '.join(offload)}" for strategy, offload in LEGAL_OFFLOAD.items())
        message = f"{spec.parallel.strategy} cannot offload {spec.parallel.offload}"
        yield "parallel.offload", message, f"what goes together is {cells}"


def _check_time(spec: Spec) -> Iterator[Complaint]:
    try:
        parse_minutes(spec.resources.time)
    except ValueError as error:
        yield "resources.time", str(error), "write 90s, 30m, 4h or 2-12:00:00"


_CHECKS: tuple[Callable[[Spec], Iterator[Complaint]], ...] = (
    _check_name,
    _check_sections,
    _check_sources,
    _check_length,
    _check_warmup,
    _check_full_training,
    _check_revision,
    _check_remote_code,
    _check_data,
    _check_loss,
    find_not_yet,
    _check_format,
    _check_pairs,
    _check_stage_sections,
    _check_dpo,
    _check_adapter,
    _check_ppo,
    _check_kl_control,
    _check_engine,
    _check_stored_adapter,
    _check_offload,
    _check_time,
)
# Where a check looks at more than the key that it complains about.
_LOOKS_AT: dict[Callable[[Spec], Iterator[Complaint]], tuple[str, ...]] = {
    _check_sources: ("script.path", "script.sources"),
    _check_length: ("train.max_steps", "train.epochs"),
    _check_warmup: ("train.warmup_steps", "train.warmup_ratio", "train.max_steps"),
    _check_full_training: ("model.adapter", "model.quantization"),
    _check_revision: ("model.revision", "model.base"),
    _check_remote_code: ("model.trust_remote_code", "model.revision", "model.base"),
    _check_loss: ("train.loss_on", "data.format"),
    _check_format: ("stage", "data.format"),
    _check_pairs: ("stage",),
    _check_adapter: ("stage", "model.quantization"),
    _check_ppo: ("stage", "train.global_batch", "data.max_length"),
    _check_kl_control: ("stage", "ppo.kl_target", "ppo.kl_coef", "ppo.rollout_batch", "train.global_batch"),
    _check_engine: ("stage", "model.quantization", "model.base", "model.adapter", "ppo.temperature"),
    _check_stage_sections: ("stage",),
    _check_dpo: ("stage", "dpo.loss_type"),
    _check_stored_adapter: ("stage", "model.base"),
    _check_offload: ("parallel.offload", "parallel.strategy"),
}
