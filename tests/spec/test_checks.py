"""What is wrong between keys, and what this version cannot do yet."""

import json
import subprocess
import sys

import pytest

from launcher.contract.strategies import LEGAL_OFFLOAD
from launcher.spec.not_yet import ROWS

from .texts import VALID, edit

DPO = {"stage": "dpo", "data.format": "preference"}
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.max_steps": "null"}, "train.max_steps: neither max_steps nor epochs says when to stop"),
        ({"train.epochs": "3"}, "train.epochs: stands beside max_steps"),
        ({"train.warmup_ratio": "0.1", "train.warmup_steps": "5"}, "train.warmup_steps: stands beside warmup_ratio"),
        ({"train.warmup_steps": "60"}, "train.warmup_steps: a warmup of 60 steps never ends in 60 steps"),
        ({"model.adapter": "null"}, "model.adapter: weights stored as nf4 cannot be trained themselves"),
        ({"model.adapter": "null", "model.quantization": "int8"}, "weights stored as int8 cannot be trained"),
        ({"model.revision": "main"}, "model.revision: only a model from the hub has revisions"),
        ({"model.trust_remote_code": "true"}, "model.trust_remote_code: builtin:tiny comes without code"),
        ({"data.format": "text"}, "train.loss_on: rows of plain text have no assistant part"),
        ({"data.format": "preference"}, "data.format: sft does not learn from preference rows"),
        ({"stage": "dpo"}, "data.format: dpo does not learn from alpaca rows"),
        ({"dpo": "{beta: 0.2}"}, "dpo: settings of the dpo stage, and this stage is sft"),
        ({"reward": "{center: 0.01}", **DPO}, "reward: settings of the reward stage, and this stage is dpo"),
        ({"dpo.beta": "0", **DPO}, "dpo.beta: must be greater than 0, got 0"),
        ({"dpo.loss_type": "aot", **DPO}, "dpo.loss_type: expected one of sigmoid, sigmoid_norm"),
        ({"dpo.label_smoothing": "0.1", **DPO}, "dpo.label_smoothing: the loss sigmoid does not use it"),
        ({"dpo.loss_type": "exo_pair", **DPO}, "dpo.label_smoothing: the loss exo_pair needs one above 0"),
        ({"train.packing": "true", **DPO}, "train.packing: dpo takes pairs, which are not packed"),
        ({"model.adapter": "null", "model.quantization": "none", **DPO}, "model.adapter: dpo compares with the model"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(problems, values, message):
    told = problems(edit(**values))
    assert message in told
    assert told.count("spec.yaml:") == 1
    assert "hint: " in told


def test_remote_code_needs_a_pinned_revision(load, problems, folder):
    hub = {"model.base": "owner/name", "model.trust_remote_code": "true"}
    for revision in ("null", "main", SHA[:39]):
        assert "needs a pinned revision" in problems(edit(**hub, **{"model.revision": f"'{revision}'"}))
    assert load(edit(**hub, **{"model.revision": f"'{SHA}'"})).spec.model.trust_remote_code
    for name, is_fine in (("model", False), (f"snapshots/{SHA}", True)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
        text = edit(**{"model.base": f"./{name}", "model.trust_remote_code": "true"})
        if is_fine:
            load(text)
        else:
            assert "code in a folder of no known revision is not run" in problems(text)


def test_a_stored_adapter_must_be_the_one_that_is_asked_for(load, problems, folder):
    (folder / "adapter").mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 32, "target_modules": ["q_proj"]}

    def told(changes=None, **values):
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config | (changes or {})))
        return problems(edit(**{"model.base": "./adapter", **values}))

    assert "model.adapter.r: 16, but the adapter in model.base has 8\n" in told()
    assert "hint: set model.adapter.r: 8" in told()
    both = told(**{"model.adapter.r": "4", "model.adapter.alpha": "4"})
    assert both.count("but the adapter in model.base has") == 2
    assert "spec.yaml:6:8: model.adapter.r" in both
    layers = told(**{"model.adapter.r": "8", "model.adapter.target_modules": "[v_proj]"})
    assert "model.adapter.target_modules: the adapter in model.base is on other layers: q_proj" in layers
    full = told(**{"model.adapter": "null", "model.quantization": "none"})
    assert "model.adapter: null asks for full fine-tuning, and model.base holds an adapter" in full
    assert "holds the adapter of a reward model, and sft trains" in told({"task_type": "SEQ_CLS", "r": 16})
    assert "holds IA3 adapter" in told({"peft_type": "IA3"})
    (folder / "adapter" / "adapter_config.json").write_text("[]")
    assert "adapter_config.json: not a JSON object" in problems(edit(**{"model.base": "./adapter"}))
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert load(edit(**{"model.base": "./adapter", "model.adapter.r": "8"})).spec.model.base.endswith("/adapter")


@pytest.mark.parametrize("strategy", LEGAL_OFFLOAD)
@pytest.mark.parametrize("offload", ["none", "optimizer", "all"])
def test_the_illegal_offload_cells_name_the_legal_ones(load, strategy, offload):
    from launcher.errors import SpecError

    try:
        load(edit(**{"parallel.strategy": strategy, "parallel.offload": offload}))
        told = ""
    except SpecError as error:
        told = str(error)
    assert (f"{strategy} cannot offload {offload}" in told) == (offload not in LEGAL_OFFLOAD[strategy])
    if offload not in LEGAL_OFFLOAD[strategy]:
        assert "zero2: none, optimizer; zero3: none, optimizer, all" in told


def test_what_comes_later_is_refused_with_what_works_today(problems, folder):
    (folder / "ds.json").write_text("{}")
    some = {"parallel.ds_config": "ds.json", "stages": "{a: {}}", "sweep": "{grid: {}}"}
    some |= {"ppo": "{reward: x}"}
    for row in ROWS:
        for value in row.values or (some[row.key],):
            told = problems(edit(**{row.key: value}))
            assert "is not yet in this version" in told or "cannot offload" in told
            assert f"{row.key}: " in told
            assert f"what works today: {row.works}" in told or "cannot offload" in told


def test_a_check_is_silent_about_keys_that_are_wrong_themselves(problems):
    assert problems(edit(**{"train.max_steps": "sixty"})).count("spec.yaml:") == 1
    assert problems(VALID.replace("max_steps", "max_step")).count("spec.yaml:") == 1
    assert problems(edit(**{"train.max_steps": "${env:GONE}"})).count("spec.yaml:") == 1


def test_importing_the_room_loads_neither_pydantic_nor_ruamel():
    code = "import sys, launcher.spec, launcher.cluster; print({'pydantic', 'ruamel.yaml', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
