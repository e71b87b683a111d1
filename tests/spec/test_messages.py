"""What a user reads about a wrong spec: all of it at once, each with its place and a remedy."""

from textwrap import dedent

import pytest

from .texts import VALID, edit

EVERYTHING = """\
name: "a b"
stage: sftt
learning_rate: 1
model:
  base: builtin:tin
  adapter: {r: 0, rnk: 1}
data:
  train: row.json
train:
  micro_batch: 2.0
  learning_rate: "2e-4"
  max_step: 60
  gradient_checkpointing: yes
  weight_decay: .nan
  scheduler: Cosine
parallel:
resources: {time: 60, nodes: 1_000}
"""


def test_every_problem_is_reported_at_once_with_its_place_and_a_remedy(problems, folder):
    assert problems(EVERYTHING) == dedent(f"""\
        spec.yaml:1:7: name: expected 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit; got text "a b"
            name: "a b"
                  ^
          hint: Name of the run.
        spec.yaml:2:8: stage: expected one of sft, reward, dpo, ppo, script, prepare, pretrain, evaluate, export; \
got text "sftt"
            stage: sftt
                   ^
          hint: did you mean sft?
        spec.yaml:3:1: learning_rate: unknown key
            learning_rate: 1
            ^
          hint: did you mean train.learning_rate?
        spec.yaml:5:9: model.base: there is no builtin:tin
              base: builtin:tin
                    ^
          hint: the built-in models are builtin:tiny
        spec.yaml:6:16: model.adapter.r: must be at least 1, got 0
              adapter: {{r: 0, rnk: 1}}
                           ^
          hint: Rank of the update matrices.
        spec.yaml:6:19: model.adapter.rnk: unknown key
              adapter: {{r: 0, rnk: 1}}
                              ^
          hint: the keys here are kind, r, alpha, dropout, target_modules, dtype
        spec.yaml:8:10: data.train: {show(folder / "row.json")} does not exist
              train: row.json
                     ^
          hint: did you mean rows.json?
        spec.yaml:10:16: train.micro_batch: expected a whole number; got 2.0
              micro_batch: 2.0
                           ^
          hint: write 2
        spec.yaml:11:18: train.learning_rate: expected a number; got text "2e-4"
              learning_rate: "2e-4"
                             ^
          hint: remove the quotes: 2e-4
        spec.yaml:12:3: train.max_step: unknown key
              max_step: 60
              ^
          hint: did you mean train.max_steps?
        spec.yaml:13:27: train.gradient_checkpointing: expected true or false; got text "yes"
              gradient_checkpointing: yes
                                      ^
          hint: write true
        spec.yaml:14:17: train.weight_decay: .nan is not a finite number
              weight_decay: .nan
                            ^
          hint: write a finite number, or quote it if it is text
        spec.yaml:15:14: train.scheduler: expected one of cosine, linear, constant; got text "Cosine"
              scheduler: Cosine
                         ^
          hint: did you mean cosine?
        spec.yaml:16:1: parallel: expected a section; got nothing
            parallel:
            ^
          hint: remove the key, or write {{}}
        spec.yaml:17:19: resources.time: expected a duration such as 90s, 30m, 4h, 1:30:00 or 2-12:00:00; got 60
            resources: {{time: 60, nodes: 1_000}}
                              ^
          hint: Wall-time limit: 90s, 30m, 4h, 2-12:00:00.
        spec.yaml:17:30: resources.nodes: expected a whole number; got text "1_000"
            resources: {{time: 60, nodes: 1_000}}
                                         ^
          hint: write 1000""")


def show(path):
    text = str(path)
    return text if len(text) <= 60 else f"...{text[-57:]}"


def test_of_equally_close_words_the_first_is_proposed(problems):
    assert problems(edit(**{"parallel.strategy": "zero1"})).endswith("hint: did you mean zero2?")


def test_an_empty_file_names_every_key_that_must_be_there(problems):
    assert problems("") == dedent("""\
        spec.yaml:1:1: name: is missing
          hint: Name of the run.
        spec.yaml:1:1: stage: is missing
          hint: What the run does.
        spec.yaml:1:1: model.base: is missing
          hint: Folder of a model or adapter, hub id, or builtin:tiny.
        spec.yaml:1:1: data.train: is missing
          hint: File, list of files, folder, or hub id.
        spec.yaml:1:1: train.max_steps: neither max_steps nor epochs says when to stop
          hint: add max_steps: 60, or epochs: 3""")


def test_an_override_is_its_own_place(problems):
    assert problems(VALID, "train.lr=1e-4", "train.seed=x") == dedent("""\
        override: train.lr: unknown key
            train.lr=1e-4
            ^
          hint: did you mean train.learning_rate?
        override: train.seed: expected a whole number; got text "x"
            train.seed=x
                       ^
          hint: Seed of weights, order and dropout.""")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("max_steps: 60", "did you mean train.max_steps?"),
        ("lr: 1e-4", "did you mean train.learning_rate?"),
        ("lora_r: 8", "did you mean model.adapter.r?"),
        ("per_device_train_batch_size: 8", "did you mean train.micro_batch?"),
        ("gpus-per-node: 8", "did you mean resources.gpus_per_node?"),
        ("dtype: bfloat16", "did you mean model.dtype or model.adapter.dtype?"),
        ("resorces: {}", "did you mean resources?"),
        ("train.max_steps: 5", "dotted keys are for overrides; in a file write `train: {max_steps: ...}`"),
        ("zzz: 1", "the keys here are name, stage, cluster, model,"),
    ],
)
def test_an_unknown_key_hints_at_the_one_that_was_meant(problems, line, hint):
    assert f"  hint: {hint}" in problems(f"{VALID}{line}\n")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.micro_batch", "0", "must be at least 1, got 0"),
        ("train.micro_batch", "-3", "must be at least 1, got -3"),
        ("train.micro_batch", "true", "expected a whole number; got true"),
        ("train.learning_rate", "0", "must be greater than 0, got 0"),
        ("train.learning_rate", "1e999", "1e999 is not a finite number"),
        ("train.learning_rate", "-.inf", "-.inf is not a finite number"),
        ("train.seed", "null", "expected a whole number; got null"),
        ("train.warmup_ratio", "1", "must be less than 1, got 1"),
        ("train.packing", "1", "expected true or false; got 1"),
        ("train.max_steps", "[1]", "expected a whole number or null; got a list"),
        ("train", "null", "expected a section; got null"),
        ("model", "3", "expected a section or null; got 3"),
        ("model.base", '""', "must not be empty"),
        ("tracking.tags", "a", 'expected a list of texts; got text "a"'),
        ("tracking.tags", "[a, 1]", "tracking.tags.1: expected text; got 1"),
        ("data.columns", "{a: {b: c}}", "data.columns.a: expected text; got a section"),
        ("data.train", "[]", "data.train: must not be empty"),
        ("data.train", "{a: b}", "expected text or a list of texts; got a section"),
        ("data.eval", "1.5", "a fraction lies between 0 and 1, got 1.5"),
        ("data.eval", '"0.1"', "0.1 does not exist, and is no hub id"),
        ("resources.time", "0m", "a duration of nothing, which Slurm takes for no limit"),
        ("resources.time", "900d", "longer than 366 days"),
        ("resources.partition", '"main\\n#SBATCH --x"', 'got text "main?#SBATCH --x"'),
        ("name", '"x\\n#SBATCH --x"', "expected 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit; got"),
        ("name", "../x", "expected 1 to 64 of A-Z"),
        ("name", "-x", "expected 1 to 64 of A-Z"),
        ("name", "a/b", "expected 1 to 64 of A-Z"),
        ("name", "$(id)", "expected 1 to 64 of A-Z"),
        ("name", "x" * 300, "expected 1 to 64 of A-Z"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_is_allowed(problems, key, value, message):
    told = problems(edit(**{key: value}))
    assert message in told
    assert "pydantic" not in told
    assert "Input should" not in told


def test_numbers_are_yaml_1_2(load):
    spec = load(edit(**{"train.learning_rate": "5e-7", "model.adapter.dropout": "0", "name": "no"})).spec
    assert spec.train.learning_rate == 5e-7
    assert spec.model.adapter.dropout == 0
    assert spec.name == "no"


def test_a_long_line_is_shown_around_its_fault_and_cannot_move_the_cursor(problems):
    told = problems(VALID + "tracking: {tags: [" + "a, " * 500 + "1, " + "b, " * 500 + "]}\n")
    shown, caret = told.splitlines()[1:3]
    assert len(shown) < 120
    assert shown[caret.index("^")] == "1"
    assert "\x1b" not in problems(VALID + '"\\e[31mred": 1\n')


def test_loaded_spec_places_later_problems(load):
    loaded = load(VALID, "resources.nodes=4")
    assert str(loaded.problem("resources.nodes", "the cluster has 2 nodes")) == dedent("""\
        override: resources.nodes: the cluster has 2 nodes
            resources.nodes=4
                            ^""")
    assert str(loaded.problem("train.global_batch", "not divisible", "try 32")) == dedent("""\
        spec.yaml:7:1: train.global_batch: not divisible
            train:
            ^
          hint: try 32""")
    assert loaded.problem("tracking.project", "x").line == 1
