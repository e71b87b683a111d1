"""Loading builtin:tiny in each kind, and what is refused before or after."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from jobs.errors import JobError
from jobs.final import check_moved, check_saved
from jobs.gather import gather_trained
from jobs.model import (
    add_adapter,
    check_config,
    load_base,
    load_config,
    load_tokenizer,
    name_weights,
    save_weights,
)
from jobs.tiny import make_model
from launcher.contract.spec import Adapter, Model

TINY = Model(base="builtin:tiny", quantization="none", dtype="float32")


def test_the_builtin_model_is_the_same_whatever_the_random_state() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = make_model().state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(weight, first[name]) for name, weight in make_model().state_dict().items())


def test_the_byte_tokenizer_gives_any_text_back() -> None:
    tokenizer = load_tokenizer(TINY, None)
    text = "naïve 日本 🙂\t\r\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("日")["input_ids"]) == 3
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("quantization", "stored"), [("nf4", torch.uint8), ("int8", torch.int8), ("none", torch.bfloat16)]
)
def test_each_quantization_with_the_adapter_in_the_dtype_asked(quantization: str, stored: torch.dtype) -> None:
    for dtype in ("float32", "bfloat16"):
        model = Model(base="builtin:tiny", quantization=quantization, adapter=Adapter(r=4, dtype=dtype))  # type: ignore[arg-type]
        peft_model = add_adapter(load_base(model), model, seed=3)
        trainable = [weight for weight in peft_model.parameters() if weight.requires_grad]
        assert {weight.dtype for weight in trainable} == {getattr(torch, dtype)}
        assert peft_model.get_parameter("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight").dtype == stored


def test_a_target_that_names_no_layer_is_refused_even_among_others() -> None:
    base = make_model()
    for targets, message in (
        (["q_proj", "qproj"], "qproj names no linear layer; there are down_proj"),
        ("x", "x names"),
    ):
        with pytest.raises(JobError, match=message):
            add_adapter(base, Model(base="builtin:tiny", adapter=Adapter(target_modules=targets)), seed=0)
    with pytest.raises(JobError, match="lm_head cannot carry"):
        add_adapter(base, Model(base="builtin:tiny", adapter=Adapter(target_modules=["lm_head"])), seed=0)


def test_what_does_not_fit_is_refused_before_the_weights_load(tmp_path: Path) -> None:
    tokenizer, config = load_tokenizer(TINY, None), load_config(TINY)
    with pytest.raises(JobError, match="4096 tokens, but builtin:tiny takes at most 2048"):
        check_config(config, TINY, tokenizer, 4096)
    config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(JobError, match="is stored as gptq"):
        check_config(config, TINY, tokenizer, 64)
    with pytest.raises(JobError, match="does not load"):
        load_config(Model(base=str(tmp_path)))
    with pytest.raises(JobError, match=r"chat_template: .*no-such\.jinja"):
        load_tokenizer(TINY, str(tmp_path / "no-such.jinja"))


def test_a_template_from_text_or_file(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}!")
    for value in ("{{ messages[0].content }}!", str(tmp_path / "t.jinja")):
        tokenizer = load_tokenizer(TINY, value)
        assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x!"


def test_a_saved_adapter_that_differs_from_the_live_one_is_found(tmp_path: Path) -> None:
    model = add_adapter(load_base(TINY), TINY, seed=0)
    gathered = gather_trained(SimpleNamespace(model=model, model_wrapped=model), keep=True)
    assert gathered is not None
    weights = name_weights(model, gathered)
    save_weights(model, tmp_path, gathered)
    check_saved(tmp_path, weights)
    with pytest.raises(JobError, match="all zero"):
        check_moved(weights)
    name = next(name for name in weights if "lora_B" in name)
    with torch.no_grad():
        weights[name][0, 0] = 1e-8
    check_moved(weights)
    with pytest.raises(JobError, match="is not what the live model has"):
        check_saved(tmp_path, weights)
    with pytest.raises(JobError, match="1 tensors are missing"):
        check_saved(tmp_path, {**load_file(tmp_path / "adapter_model.safetensors"), "more": torch.ones(1)})
