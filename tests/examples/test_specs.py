"""The example specs load as they stand: every key is in the contract, every file they name is there."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from launcher.contract.spec import Data, Model, Parallel, Resources, Script, Spec, Tracking, Train
from launcher.spec import load_stages

from ..conftest import ROOT, Tuneyard

EXAMPLES = ROOT / "examples"
SPECS = sorted(path.name for path in EXAMPLES.glob("*.yaml"))
SECTIONS = {
    "model": Model,
    "data": Data,
    "train": Train,
    "parallel": Parallel,
    "resources": Resources,
    "tracking": Tracking,
    "script": Script,
}


def names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("name", SPECS)
def test_every_key_is_in_the_contract(name: str) -> None:
    tree = YAML(typ="safe", pure=True).load((EXAMPLES / name).read_text(encoding="utf-8"))
    assert set(tree) <= names(Spec)
    for part in (tree, *(tree.get("stages") or {}).values()):
        for section, cls in SECTIONS.items():
            assert set(part.get(section) or {}) <= names(cls), section


@pytest.mark.parametrize("name", SPECS)
def test_example_loads_as_it_stands(name: str) -> None:
    for loaded in load_stages(EXAMPLES / name).values():
        spec = loaded.spec
        if spec.script is not None:
            assert Path(spec.script.path).is_file()
        else:
            assert Path(str(spec.require_data().train)).is_file()
            assert Path(str(spec.require_data().eval)).is_file()


@pytest.mark.parametrize("name", SPECS)
def test_example_plans_without_a_warning(name: str, tuneyard: Tuneyard) -> None:
    model = [] if "stage: script" in (EXAMPLES / name).read_text() else ["model.base=builtin:tiny"]
    done = tuneyard("plan", str(EXAMPLES / name), "--cluster", "local", *model)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout + done.stderr
