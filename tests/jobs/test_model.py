"""Loading builtin:tiny in each kind, with a fresh or a stored adapter, and what is refused before or after."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from jobs.adapter import Origin, add_adapter, find_origin
from jobs.errors import JobError
from jobs.final import check_moved, check_saved
from jobs.gather import gather_trained
from jobs.model import (
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


def add_fresh(model: Model) -> Any:
    assert model.adapter is not None
    return add_adapter(load_base(model), Origin(model, model), model.adapter, seed=3)


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
        peft_model = add_fresh(model)
        trainable = [weight for weight in peft_model.parameters() if weight.requires_grad]
        assert {weight.dtype for weight in trainable} == {getattr(torch, dtype)}
        assert peft_model.get_parameter("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight").dtype == stored


def test_a_missing_optional_kernel_is_not_told_and_all_else_is() -> None:
    code = (
        "from jobs.stage import hush_missing_kernel; hush_missing_kernel(); import bitsandbytes\n"
        "logger = bitsandbytes.backends.cpu.ops.logger\n"
        "logger.warning('Failed to load CPU gemm_4bit_forward from kernels-community: %s', 'no kernels')\n"
        "logger.warning('something else')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gemm_4bit_forward" not in done.stderr
    assert "something else" in done.stderr


def test_a_target_that_names_no_layer_is_refused_even_among_others() -> None:
    base = make_model()
    for targets, message in (
        (["q_proj", "qproj"], "qproj names no linear layer; there are down_proj"),
        ("x", "x names"),
    ):
        with pytest.raises(JobError, match=message):
            add_adapter(base, Origin(TINY, TINY), Adapter(target_modules=targets), seed=0)
    with pytest.raises(JobError, match="lm_head cannot carry"):
        add_adapter(base, Origin(TINY, TINY), Adapter(target_modules=["lm_head"]), seed=0)


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
    model = add_fresh(TINY)
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


@pytest.mark.parametrize("elements", [1, 40, 1000])
def test_parts_are_gathered_in_buckets_of_one_dtype(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr("jobs.gather.BUCKET", elements)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 7), torch.nn.BatchNorm1d(7).bfloat16())
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trained: Any = fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        gathered = gather_trained(SimpleNamespace(model=trained, model_wrapped=trained), keep=True)
    finally:
        distributed.destroy_process_group()
    assert gathered is not None
    assert set(gathered) == set(weights)
    assert all(gathered[name].dtype == weights[name].dtype for name in weights)
    assert all(torch.equal(gathered[name], weights[name]) for name in weights)


def store(folder: Path, base: str = "builtin:tiny", **changes: Any) -> Path:
    """An adapter's folder with what its configuration says changed."""
    model = add_fresh(TINY)
    gathered = gather_trained(SimpleNamespace(model=model, model_wrapped=model), keep=True)
    assert gathered is not None
    save_weights(model, folder, gathered)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": base, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapters_base_is_the_one_that_its_configuration_names(tmp_path: Path) -> None:
    store(tmp_path / "adapter")
    origin = find_origin(replace(TINY, base=str(tmp_path / "adapter")), "dpo")
    assert (origin.base, origin.tokenizer, origin.folder) == (TINY, TINY, tmp_path / "adapter")
    load_tokenizer(TINY, "{{ messages }}").save_pretrained(tmp_path / "adapter")
    assert find_origin(replace(TINY, base=str(tmp_path / "adapter")), "dpo").tokenizer.base == str(tmp_path / "adapter")
    (tmp_path / "base").mkdir()
    for name, found in (("../base", str(tmp_path / "base")), (str(tmp_path / "base"), str(tmp_path / "base"))):
        store(tmp_path / "adapter", name)
        assert find_origin(replace(TINY, base=str(tmp_path / "adapter")), "sft").base.base == found
    store(tmp_path / "adapter", "owner/name", revision="abc")
    base = find_origin(replace(TINY, base=str(tmp_path / "adapter")), "sft").base
    assert (base.base, base.revision) == ("owner/name", "abc")
    assert find_origin(TINY, "dpo") == Origin(TINY, TINY)


def test_stored_weights_are_taken_bit_by_bit_and_trained_in_the_dtype_asked_for(tmp_path: Path) -> None:
    folder = store(tmp_path / "adapter")
    stored = load_file(folder / "adapter_model.safetensors")
    for dtype in ("float32", "bfloat16"):
        model = replace(TINY, base=str(folder), adapter=Adapter(dtype=dtype))
        origin = find_origin(model, "reward")
        base = load_base(origin.base, task="SEQ_CLS", seed=1)
        assert model.adapter is not None
        live = add_adapter(base, origin, model.adapter, 1, "SEQ_CLS")
        weights = dict(live.named_parameters())
        for name, tensor in stored.items():
            weight = weights[name.replace(".weight", ".default.weight")]
            assert weight.requires_grad
            assert torch.equal(weight, tensor.to(getattr(torch, dtype)))
        trained = {name for name, weight in weights.items() if weight.requires_grad}
        assert len(trained) == len(stored) + 1
        assert "base_model.model.score.modules_to_save.default.weight" in trained


def test_a_new_score_head_comes_from_the_seed_alone() -> None:
    def head(seed: int, quantization: str = "none") -> torch.Tensor:
        torch.manual_seed(torch.seed() % 1000)
        return load_base(replace(TINY, quantization=quantization), task="SEQ_CLS", seed=seed).score.weight  # type: ignore[arg-type]

    assert torch.equal(head(1), head(1))
    assert torch.equal(head(1), head(1, "nf4"))
    assert not torch.equal(head(1), head(2))
    assert head(1).shape == (1, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, r"model\.adapter\.r: 16, but the adapter in model\.base has 8; set model\.adapter\.r: 8"),
        ({"task_type": "SEQ_CLS"}, "holds the adapter of a reward model, and sft trains a language model"),
        ({"peft_type": "IA3"}, "holds IA3 adapter"),
        ({"modules_to_save": ["lm_head"]}, r"more than the linear layers \(modules_to_save\)"),
        ({"base": "/gone"}, "was trained on /gone, which is not here"),
        ({"base": ""}, "was trained on a base without a name"),
        ({"base": "../second"}, "is itself an adapter"),
    ],
)
def test_an_adapter_that_cannot_be_trained_further_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    store(tmp_path / "second")
    with pytest.raises(JobError, match=message):
        find_origin(replace(TINY, base=str(store(tmp_path / "adapter", **changes))), "sft")


def test_an_adapter_on_a_part_of_the_layers_is_not_all_linear(tmp_path: Path) -> None:
    some = replace(TINY, adapter=Adapter(target_modules=["q_proj", "v_proj"]))
    assert some.adapter is not None
    model = add_fresh(some)
    gathered = gather_trained(SimpleNamespace(model=model, model_wrapped=model), keep=True)
    assert gathered is not None
    save_weights(model, tmp_path, gathered)
    add_adapter(load_base(TINY), find_origin(replace(some, base=str(tmp_path)), "sft"), some.adapter, 0)
    with pytest.raises(JobError, match=r"is on q_proj, v_proj; set model\.adapter\.target_modules: \[q_proj, v_proj\]"):
        add_adapter(load_base(TINY), find_origin(replace(TINY, base=str(tmp_path)), "sft"), Adapter(), 0)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = store(tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(JobError, match="does not fit its base: 1 weights differ"):
        add_adapter(load_base(TINY), find_origin(replace(TINY, base=str(folder)), "sft"), Adapter(), 0)


def test_code_that_a_folder_names_runs_at_the_pinned_commit(tmp_path: Path) -> None:
    """A hub's cache with two commits of one repository; a checkpoint's config.json names the repository alone."""
    pinned, newest = "1" * 40, "2" * 40
    repository = tmp_path / "hub" / "models--owner--code"
    for commit in (pinned, newest):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "configuration_own.py").write_text(
            "from transformers import PreTrainedConfig\n\n\n"
            f"class OwnConfig(PreTrainedConfig):\n    model_type = 'own'\n    commit = '{commit}'\n"
        )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(newest)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = {"model_type": "own", "auto_map": {"AutoConfig": "owner/code--configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    code = (
        "from jobs.model import load_config\nfrom launcher.contract.spec import Model\n"
        f"print(load_config(Model(base={str(folder)!r}, revision={pinned!r}, trust_remote_code=True)).commit)"
    )
    places = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **places, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [pinned], done.stderr
