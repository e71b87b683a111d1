"""``builtin:tiny``: a small Llama with a byte tokenizer and a chat template, the same everywhere, no downloads."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TINY = "builtin:tiny"
PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
MAX_POSITIONS = 2048

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """A token for each of the 256 bytes, then three special ones; the end of a turn is the end of sequence."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # ByteLevel writes each byte as one printable character; a BPE without merges leaves them as they are.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in (PAD, TURN_START, TURN_END)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        model_max_length=MAX_POSITIONS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> "LlamaForCausalLM":
    """About 160 thousand float32 parameters from a seed of their own; the caller's random state stays untouched.

    Every linear layer has a multiple of 64 elements per row, NF4's block size, so that it can be quantized.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(make_tokenizer()),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=make_tokenizer().eos_token_id,
        pad_token_id=make_tokenizer().pad_token_id,
        dtype="float32",
        architectures=["LlamaForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def write_tiny(folder: Path) -> None:
    """Save model and tokenizer to ``folder`` as a hub model would lie there."""
    from safetensors.torch import save_file

    model = make_model()
    # Not model.save_pretrained: in a process group transformers 5.23 lets only rank 0 write, and every rank needs one.
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
