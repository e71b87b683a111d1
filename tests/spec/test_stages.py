"""Files with stages: what each stage becomes, and what is refused."""

import pytest

from launcher.errors import SpecError
from launcher.spec import load_stages

from .texts import VALID

PIPELINE = (
    VALID
    + """\
stages:
  sft: {train: {learning_rate: 1e-3}}
  second:
    model: {base: "${stages.sft.checkpoint}"}
    parallel: {strategy: zero3}
    resources: {nodes: 1, time: 2h}
    train: {warmup_ratio: null}
"""
)


@pytest.fixture
def stages(folder):
    def load(text, *overrides):
        (folder / "spec.yaml").write_text(text)
        return {name: loaded.spec for name, loaded in load_stages(folder / "spec.yaml", overrides, {}).items()}

    return load


@pytest.fixture
def refused(stages):
    def told(text, *overrides):
        with pytest.raises(SpecError) as error:
            stages(text, *overrides)
        assert error.value.exit_code == 2
        return str(error.value)

    return told


def test_a_stage_changes_what_it_names_and_shares_the_rest(stages):
    (whole,) = stages(VALID).values()
    found = stages(PIPELINE)
    assert list(found) == ["sft", "second"]
    first, second = found.values()
    assert first.train.learning_rate == 1e-3
    assert second.train.learning_rate == whole.train.learning_rate
    assert (first.parallel.strategy, second.parallel.strategy) == (whole.parallel.strategy, "zero3")
    assert (second.resources.nodes, second.resources.time) == (1, "2h")
    assert second.model.base == "${stages.sft.checkpoint}"
    assert second.model.quantization == whole.model.quantization
    assert first.data == second.data == whole.data
    assert first.name == second.name == whole.name
    assert first.stages == second.stages == {}


def test_overrides_reach_all_stages_or_one(stages):
    found = stages(PIPELINE, "train.seed=7", "stages.second.train.seed=8", "stages.second.resources.partition=2024")
    assert [spec.train.seed for spec in found.values()] == [7, 8]
    assert found["second"].resources.partition == "2024"  # text, because the schema says so


def test_a_stage_called_as_a_kind_is_of_that_kind(stages):
    """Whatever the top says, for everything else there is shared; but its own word counts."""
    spec = VALID.replace("stage: sft\n", "") + "stages: {sft: {}, warm: {stage: sft}}\n"
    assert [spec.stage for spec in stages(spec).values()] == ["sft", "sft"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("${stages.sft.checkpoint}", "${stages.stf.checkpoint}", "stf is no earlier stage"),
        ("${stages.sft.checkpoint}", "${stages.second.checkpoint}", "second is no earlier stage"),
        ("${stages.sft.checkpoint}", "${stages.sft.model}", "is not a reference to a stage"),
        ("${stages.sft.checkpoint}", "${stages.sft.checkpoint.worst}", "is not a reference to a stage"),
        ("resources: {nodes: 1, time: 2h}", "resources: {nodes: 1, tiem: 2h}", "resources.tiem: unknown key"),
        ("time: 2h", "time: soon", "resources.time"),
        ("train: {warmup_ratio: null}", "name: other", "stages.second.name: cannot change in a stage"),
        ("train: {warmup_ratio: null}", "cluster: h100", "stages.second.cluster: cannot change in a stage"),
        ("train: {warmup_ratio: null}", "stages: {a: {}}", "stages.second.stages: cannot change in a stage"),
        ("  second:", "  a/b:", "cannot be the name of a stage"),
        ("  second:", '  "..":', "cannot be the name of a stage"),
        ("  sft: {train: {learning_rate: 1e-3}}", "  sft: 3", "expected a section"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(refused, old, new, message):
    told = refused(PIPELINE.replace(old, new))
    assert message in told
    assert "spec.yaml:" in told
    assert "hint: " in told


def test_stages_as_a_list_are_refused(refused):
    assert "expected a section: stage name" in refused(VALID + "stages: [sft, dpo]\n")


def test_what_all_stages_share_is_told_once(refused):
    assert refused(PIPELINE.replace("max_steps: 60", "max_steps: sixty")).count("train.max_steps") == 1


def test_a_reference_outside_a_pipeline_is_refused(refused):
    assert "is no earlier stage" in refused(VALID.replace("builtin:tiny", '"${stages.sft.checkpoint}"'))
