"""Loads the base model as the spec says: place, quantization, dtype, and the head of its task."""

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launcher.contract.spec import Model

from .errors import JobError
from .tiny import TINY, write_tiny

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


Task = Literal["CAUSAL_LM", "SEQ_CLS"]
"""peft's names: a language model, or one with a score head (one number per sequence) in its place."""


def load_tokenizer(model: Model, chat_template: str | None) -> "PreTrainedTokenizerBase":
    """The base's tokenizer, with ``chat_template`` (Jinja text, or a file of it) instead of its own where one is given.

    A tokenizer without a padding token pads with its end of sequence: padding carries no loss and is masked out of
    the attention, so the two are never mistaken for each other.

    Raises:
        JobError: none is there, it cannot map tokens back to text, or it has neither padding nor end of sequence.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = _load(AutoTokenizer.from_pretrained, model)
    if not tokenizer.is_fast:
        # Which tokens are the assistant's is read off each token's place in the text, and only these report it.
        raise JobError(f"model.base: {model.base} has no fast tokenizer (tokenizer.json), which tuneyard needs")
    if tokenizer.eos_token is None:
        raise JobError(f"model.base: the tokenizer of {model.base} has no end-of-sequence token; set one in its files")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    return tokenizer


def load_config(model: Model) -> "PreTrainedConfig":
    """The base's configuration, without its weights."""
    from transformers import AutoConfig

    return _load(AutoConfig.from_pretrained, model)


def check_config(config: Any, model: Model, tokenizer: Any, max_length: int) -> None:
    """Find what would fail, or would silently be something else, before any weight is loaded.

    Raises:
        JobError: sequences longer than the model takes, token ids beyond its embedding, or weights that are stored
            quantized otherwise than asked.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise JobError(f"data.max_length: {max_length} tokens, but {model.base} takes at most {positions}")
    if len(tokenizer) > text.vocab_size:
        raise JobError(
            f"model.base: the tokenizer of {model.base} has {len(tokenizer)} tokens, its embedding {text.vocab_size}"
        )
    stored: Any = getattr(config, "quantization_config", None)
    if stored is None:
        return
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    kind = "nf4" if stored.get("bnb_4bit_quant_type") == "nf4" else str(stored.get("quant_method", "quantized"))
    if kind != model.quantization:
        raise JobError(
            f"model.quantization: {model.quantization} was asked for, but {model.base} is stored as {kind}; "
            "take the unquantized model"
        )


def load_base(model: Model, *, is_sharded: bool = False, task: Task = "CAUSAL_LM", seed: int = 0) -> "PreTrainedModel":
    """The base on this rank's device: linear layers quantized as asked, all else in ``model.dtype``.

    A score head that the model does not have yet comes from ``seed`` (:mod:`jobs.score`).

    ``is_sharded`` says that the strategy will spread the weights over the ranks. Packed 4-bit weights are then stored
    as numbers of ``model.dtype``: accelerate 1.15 leaves integers whole on every rank (fsdp2_prepare_model).

    Raises:
        JobError: the model is not there, or does not load as asked.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    dtype = getattr(torch, model.dtype)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": model.attn_implementation}
    if model.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype if is_sharded else torch.uint8,
        )
    elif model.quantization == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    # Weights are quantized on the device that is current (transformers 5.23, quantizer_bnb_4bit.py), which the process
    # group has set to each rank's own. Naming it in a device_map is refused under ZeRO-3.
    if task == "SEQ_CLS":
        from .score import set_score_head

        loader = AutoModelForSequenceClassification.from_pretrained
        base, found = _load(loader, model, num_labels=1, output_loading_info=True, **options)
        set_score_head(base, model, seed, is_new=any("score" in name for name in found["missing_keys"]))
    else:
        base = _load(AutoModelForCausalLM.from_pretrained, model, **options)
    _keep_4bit_layout(base)
    return base


def save_weights(model: Any, folder: Path, state_dict: dict[str, "torch.Tensor"]) -> None:
    """Save an adapter in peft's layout, or a full model in transformers', with the tensors of ``state_dict``."""
    from peft import PeftModel

    # By default peft asks the hub, at each save, whether the base has as many embeddings as this model; and it saves
    # every adapter there is, the frozen one that dpo compares with too.
    options = {"save_embedding_layers": False, "selected_adapters": ["default"]}
    options = options if isinstance(model, PeftModel) else {}
    model.save_pretrained(folder, state_dict=state_dict, **options)


def name_weights(model: Any, state_dict: dict[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """``state_dict`` under the names that :func:`save_weights` gives its tensors."""
    from peft import PeftModel, get_peft_model_state_dict

    if isinstance(model, PeftModel):
        return get_peft_model_state_dict(model, state_dict=state_dict, save_embedding_layers=False)
    return state_dict


def _load(loader: Any, model: Model, **options: Any) -> Any:
    """Call a ``from_pretrained`` for the base; what the user can mend becomes a JobError."""
    options["trust_remote_code"] = model.trust_remote_code
    if model.trust_remote_code:
        # A checkpoint names the repository of its code and not the commit, which would then be the newest one
        # (transformers 5.23, dynamic_module_utils.py, get_class_from_dynamic_module).
        options["code_revision"] = model.revision
    if model.base == TINY:
        return loader(_tiny_folder().name, **options)
    try:
        return loader(model.base, revision=model.revision, **options)
    except (OSError, ValueError, ImportError) as error:
        raise JobError(f"model.base: {model.base} does not load: {error}") from error


@functools.cache
def _tiny_folder() -> "tempfile.TemporaryDirectory[str]":
    """The built-in model as a folder of this process's own, removed at its end: one way to load for all models."""
    folder = tempfile.TemporaryDirectory()
    write_tiny(Path(folder.name))
    return folder


def _read_template(value: str) -> str:
    """Jinja text has braces; anything else is a file's path."""
    if "{" in value:
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"data.chat_template: {value}: {error}") from error


def _keep_4bit_layout(base: Any) -> None:
    """Keep bitsandbytes from repacking NF4 weights when the model is evaluated on a CPU with AVX512-BF16.

    bitsandbytes 0.50 (nn/modules.py, Linear4bit.forward) does so for good: block scales are rounded to bfloat16, and
    the packed product has no backward, so that training after the first evaluation would go on with cut gradients.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
