"""Files with stages: what each stage becomes, and what is refused."""

from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.spec import load_stages

from .texts import VALID, edit

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
        return {name: loaded.spec for name, loaded in load_stages(Path("spec.yaml"), overrides, {}).items()}

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


def test_the_length_of_a_stage_replaces_the_other_kind_of_length(stages):
    """Of the file's top, and by an override of the stage itself."""
    text = PIPELINE.replace("max_steps: 60", "epochs: 3").replace("{learning_rate: 1e-3}", "{max_steps: 5}")
    assert [(spec.train.max_steps, spec.train.epochs) for spec in stages(text).values()] == [(5, None), (None, 3)]
    found = stages(text, "stages.sft.train.epochs=2", "stages.second.train.max_steps=7")
    assert [(spec.train.max_steps, spec.train.epochs) for spec in found.values()] == [(None, 2), (7, None)]


def test_an_override_that_reaches_no_stage_is_refused(stages, refused):
    text = PIPELINE.replace("warmup_ratio: null", "learning_rate: 1e-5, epochs: 1")
    told = refused(text, "train.learning_rate=5e-5")
    assert "override: train.learning_rate: has no effect: train.learning_rate is set in sft and in second" in told
    assert "stages.sft.train.learning_rate=5e-5" in told
    text = text.replace("learning_rate: 1e-3", "epochs: 2")
    assert "train.max_steps or train.epochs is set in sft" in refused(text, "train.max_steps=4")
    assert [spec.train.learning_rate for spec in stages(text, "train.learning_rate=5e-5").values()] == [5e-5, 1e-5]


def test_an_override_of_the_settings_of_one_kind_of_stage_names_the_stage(stages, refused):
    text = PIPELINE.replace("  second:", "  second:\n    stage: dpo\n    data: {format: preference}")
    told = refused(text, "dpo.beta=0.2")
    assert told.startswith("override: dpo.beta: settings of the dpo stage, and the stage sft is sft")
    assert told.count("override:") == 1
    remedy = told.rpartition("name the stage: ")[2]
    assert remedy == "stages.second.dpo.beta=0.2"
    assert stages(text, remedy)["second"].dpo.beta == 0.2
    assert "remove it; in a pipeline it stands in its stage" in refused(PIPELINE, "dpo.beta=0.2")


def test_an_override_adds_no_stage(refused):
    told = refused(PIPELINE, "stages.secnd.train.seed=8")
    assert told.startswith("override: stages.secnd: is no stage of the file")
    assert told.endswith("did you mean stages.second?")
    assert "the file has no stages" in refused(VALID, "stages.sft.train.seed=8")


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


def test_the_key_that_was_meant_is_that_of_the_stage_or_of_all(refused):
    told = refused(PIPELINE.replace("warmup_ratio", "warmup_rate"))
    assert "stages.second.train.warmup_rate: unknown key" in told
    assert told.endswith("hint: did you mean stages.second.train.warmup_ratio?")
    assert refused(PIPELINE, "train.seeds=1").endswith("hint: did you mean train.seed?")


def test_the_first_stage_can_refer_to_none(refused):
    told = refused(PIPELINE.replace("{train: {learning_rate: 1e-3}}", '{model: {base: "${stages.second.checkpoint}"}}'))
    assert "second is no earlier stage" in told
    assert "hint: no stage is before this one" in told


def test_what_is_wrong_in_one_stage_names_it_and_points_into_it(refused):
    top = VALID.replace("stage: sft\n", "").replace("data:\n  train: rows.json\n", "")
    told = refused(top + "stages:\n  sft: {data: {train: rows.json}}\n  dpo: {}\n  tune: {data: {train: rows.json}}\n")
    assert told.splitlines() == [
        "spec.yaml:8:3: stages.dpo.data.train: is missing",
        "      dpo: {}",
        "      ^",
        "  hint: File, list of files, folder, or hub id.",
        "spec.yaml:9:3: stages.tune.stage: is missing",
        "      tune: {data: {train: rows.json}}",
        "      ^",
        "  hint: write stage: sft, reward, dpo, ppo or script",
    ]


def test_what_is_wrong_in_two_of_three_stages_is_told_of_both(refused):
    told = refused(VALID + "stages: {a: {}, b: {parallel: {strategy: zero3}}, c: {}}\n", "parallel.offload=all")
    assert "stages.a.parallel.offload: ddp cannot offload all" in told
    assert "stages.c.parallel.offload: ddp cannot offload all" in told
    assert "stages.b" not in told


def test_what_all_stages_lack_is_told_once_at_the_top(refused):
    text = VALID.replace("data:\n  train: rows.json\n", "")
    told = refused(text + "stages: {first: {}, second: {}}\n")
    assert told == "spec.yaml:1:1: data.train: is missing\n  hint: File, list of files, folder, or hub id."


def test_the_only_stage_is_named_where_something_is_wrong_in_it(refused):
    told = refused(VALID.replace("stage: sft\n", "") + "stages: {tune: {}}\n")
    assert "spec.yaml:8:10: stages.tune.stage: is missing" in told


def test_a_later_problem_of_a_stage_names_it(folder):
    (folder / "spec.yaml").write_text(PIPELINE)
    second = load_stages(Path("spec.yaml"), [], {})["second"]
    problem = second.problem("resources.nodes", "too many")
    assert (problem.key, problem.source_line) == (
        "stages.second.resources.nodes",
        "    resources: {nodes: 1, time: 2h}",
    )


def test_a_fault_behind_a_stage_that_is_wrong_is_not_blamed_on_the_reference(refused):
    assert "no earlier stage" not in refused(PIPELINE.replace("learning_rate: 1e-3", "learning_rat: 1e-3"))


@pytest.mark.parametrize(
    "section",
    [
        'tracking: {project: "${stages.sft.checkpoint}"}',
        'tracking: {tags: ["${stages.sft.checkpoint}"]}',
        'parallel: {ds_config: "${stages.sft.checkpoint}/ds.json"}',
        'script: {path: "${stages.sft.checkpoint}/train.py"}',
        'script: {path: train.py, sources: "${stages.sft.checkpoint}"}',
        'data: {chat_template: "${stages.sft.checkpoint}/template.jinja"}',
    ],
)
def test_a_reference_stands_only_where_it_is_filled_in(refused, section):
    told = refused(VALID + f"stages:\n  sft: {{}}\n  second: {{{section}}}\n")
    assert "spec.yaml:11:" in told
    assert f"stages.second.{section.partition(':')[0]}." in told
    assert "a reference to a stage cannot stand here" in told
    assert "model.base, data.train, data.eval, script.args" in told


def test_a_reference_may_stand_in_data_and_in_arguments(stages, folder):
    (folder / "train.py").write_text("")
    text = VALID + (
        "stages:\n"
        "  make: {stage: script, script: {path: train.py}, model: null, data: null}\n"
        '  sft: {data: {train: ["${stages.make.checkpoint}/rows"], eval: "${stages.make.checkpoint}/eval"}}\n'
        "  check: {stage: script, model: null, data: null,\n"
        '    script: {path: train.py, args: [--model, "${stages.sft.checkpoint.best}"]}}\n'
    )
    found = stages(text)
    assert found["sft"].data.train == ["${stages.make.checkpoint}/rows"]
    assert found["check"].script.args == ["--model", "${stages.sft.checkpoint.best}"]


def further(parent: str, child: str, kind: str = "sft") -> str:
    """A pipeline in which a stage of ``kind`` trains what ``parent`` left further; both change their model."""
    return VALID + (
        f"stages:\n  first: {parent}\n"
        f"  second: {{stage: {kind}, data: {{format: {'messages' if kind == 'sft' else 'preference'}}}, "
        f'model: {{base: "${{stages.first.checkpoint}}"{child}}}}}\n'
    )


@pytest.mark.parametrize(
    ("parent", "child", "message", "hint"),
    [
        ("{model: {adapter: {r: 8}}}", "", "r: 16, but the adapter in model.base has 8", "model.adapter.r: 8"),
        ("{}", ", adapter: {alpha: 8}", "alpha: 8, but the adapter in model.base has 32", "model.adapter.alpha: 32"),
        (
            "{}",
            ", adapter: null, quantization: none",
            "adapter: null asks for full fine-tuning",
            "remove adapter: null",
        ),
        ("{}", ", adapter: {target_modules: [q_proj]}", "on other layers: all-linear", "target_modules: all-linear"),
        (
            "{model: {adapter: {target_modules: [q_proj, v_proj]}}}",
            "",
            "all-linear, but the adapter in model.base is on q_proj, v_proj",
            "target_modules: [q_proj, v_proj]",
        ),
        ("{stage: reward, data: {format: preference}}", "", "the adapter of a reward model", "an sft or dpo run"),
        (
            "{stage: reward, data: {format: preference}, model: {adapter: null, quantization: none}}",
            "",
            "holds a reward model",
            "an sft or dpo",
        ),
    ],
)
def test_a_stage_that_does_not_fit_the_one_it_trains_further_is_refused(refused, parent, child, message, hint):
    told = refused(further(parent, child))
    assert "stages.second.model" in told
    assert message in told
    assert hint in told


@pytest.mark.parametrize(
    ("parent", "child", "kind"),
    [
        ("{}", "", "dpo"),
        ("{model: {adapter: {r: 8}}}", ", adapter: {r: 8}", "dpo"),
        ("{model: {adapter: {target_modules: [q_proj]}}}", ", adapter: {target_modules: [q_proj]}", "reward"),
        ("{model: {adapter: null, quantization: none}}", "", "dpo"),
        ("{model: {adapter: null, quantization: none}}", ", adapter: null, quantization: none", "sft"),
        ("{stage: reward, data: {format: preference}}", "", "reward"),
    ],
)
def test_a_stage_that_fits_the_one_it_trains_further(stages, parent, child, kind):
    assert list(stages(further(parent, child, kind))) == ["first", "second"]


def test_the_best_of_a_stage_that_keeps_none_is_refused(refused, stages):
    text = PIPELINE.replace("{learning_rate: 1e-3}", "{keep_best: null}")
    assert list(stages(text)) == ["sft", "second"]
    told = refused(text.replace(".checkpoint}", ".checkpoint.best}"))
    assert "stages.second.model.base: sft has train.keep_best: null" in told
    assert "hint: write ${stages.sft.checkpoint}" in told


def test_the_best_of_a_stage_that_evaluates_nothing_is_refused(refused, stages):
    best = PIPELINE.replace(".checkpoint}", ".checkpoint.best}")
    told = refused(best, "stages.sft.data.eval=null")
    assert "spec.yaml:12:19: stages.second.model.base: sft has data.eval: null" in told
    assert "none of its checkpoints has eval_loss" in told
    assert "hint: write ${stages.sft.checkpoint}" in told
    assert "data.eval: 0.05" in told
    # Where the stage has no checkpoints its final save is taken.
    assert list(stages(best, "stages.sft.data.eval=null", "stages.sft.train.save_every_steps=null"))
    assert list(stages(PIPELINE, "stages.sft.data.eval=null"))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def pinned(top: str, child: str = "", parent: str = "") -> str:
    return edit(**{"model.base": f"owner/model\n{top}"}) + (
        f"stages:\n  sft: {{{parent}}}\n  dpo: {{data: {{format: preference}}, "
        f'model: {{base: "${{stages.sft.checkpoint}}"{child}}}}}\n'
    )


def test_a_revision_that_all_stages_share_is_that_of_the_first_base(stages):
    found = stages(pinned(f"  revision: {COMMIT}\n"))
    assert found["sft"].model.revision == COMMIT
    assert list(stages(pinned(f"  revision: {COMMIT}\n", ", revision: null"))) == ["sft", "dpo"]


def test_code_of_a_base_runs_in_a_later_stage_at_the_same_commit(stages, refused):
    trusted = f"  revision: {COMMIT}\n  trust_remote_code: true\n"
    assert [spec.model.trust_remote_code for spec in stages(pinned(trusted)).values()] == [True, True]
    told = refused(pinned(trusted, ", revision: main"))
    assert "stages.dpo.model.trust_remote_code: the code of model.base is pinned to another revision" in told
    assert f"set model.revision: {COMMIT}" in told
    told = refused(pinned(f"  revision: {COMMIT}\n", ", trust_remote_code: true"))
    assert "stages.dpo.model.trust_remote_code: the stage that model.base comes from trains without code" in told
    told = refused(pinned("  trust_remote_code: true\n"))
    assert "stages.sft.model.trust_remote_code: code from the hub needs a pinned revision" in told
