"""What is wrong between keys, and what this version cannot do yet."""

import subprocess
import sys

import pytest

from launcher.contract.strategies import LEGAL_OFFLOAD
from launcher.spec.not_yet import ROWS

from .texts import VALID, edit

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
    some = {"parallel.ds_config": "ds.json", "stages": "{a: {}}", "sweep": "{grid: {}}", "reward": "{a: 1}"}
    some |= {"dpo": "{beta: 0.1}", "ppo": "{reward: x}"}
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
