"""Mutations of valid specs: a plan or plain words, in a moment, and nothing is ever started."""

import copy
import json
import random
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from launcher.contract.values import to_value
from launcher.errors import SpecError, UserError
from launcher.submit import Prepared, prepare
from tests.conftest import ROOT
from tests.reliability import record

PIECES = [
    ":", "-", " ", "\t", "\n", "  ", "&a", "*a", "&a [*a]", "!!x ", "!!python/object/apply:os.system [id]", "{", "}",
    "[", "]", ",", "#", "'", '"', "|", ">", "%", "?", "null", "true", "no", "1", "-1", ".nan", "-.inf", "1e9", "5e-7",
    "${env:X}", "${env:X:-1}", "${stages.sft.checkpoint}", "${stages.x.checkpoint.best}", "\x00", "\x1b", "\u2028",
    "\ufeff", "é", "日本", "🙂", "\u202e", "\udcff", "---\n", "...\n", "<<: ", "\\", "@", "`id`", "$(id)", "~", "0x1",
    "0o7", "1_000", "9" * 30, "9" * 400, "a" * 300, "../../x", "/", "%j", "\n#SBATCH --x", "2026-01-01", "1:30",
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, -1, 3, 10**30, -(10**30), 0.0, -0.5, 1e-300, 1e300, "", " ", "x", "no", "null", "1", "-x",
    "1h", "-1h", "1e400", "999999999999h", "x" * 300, "a/b", "..", "../x", "~", "~nobody/x", "/dev/null", "/proc",
    "data", "a b", "a;b", "$(id)", "`id`", "%j", "a\nb", "\u0000", "é", "🙂", "${env:X}", "${stages.sft.checkpoint}",
    "${stages.dpo.checkpoint.best}", "builtin:tiny", "builtin:nope", "os:system", "nf4", "int8", "none", "zero3",
    "fsdp", "all", [], [None], ["x"], [1, 2], [[]], {}, {"x": 1}, {"r": 0}, {"path": "x"}, {"": ""},
]  # fmt: skip


@dataclass
class Outcomes:
    plans: int = 0
    refusals: int = 0
    slowest_s: float = 0.0


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the example specs, in a folder that has what they name."""
    shutil.copytree(ROOT / "examples", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    texts = [file.read_text(encoding="utf-8") for file in sorted(tmp_path.glob("*.yaml"))]
    assert len(texts) >= 6
    return texts


@pytest.mark.parametrize(
    "number",
    [pytest.param(240, marks=pytest.mark.fault_class), pytest.param(10_000, marks=pytest.mark.faults)],
)
@pytest.mark.timeout(1500)
def test_mutations_of_valid_specs_give_a_plan_or_plain_words(
    bases: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def start(self: object, command: list[str], *arguments: object, **options: object) -> None:
        if command[0] == "nvidia-smi":  # asked for the GPUs of this machine
            raise FileNotFoundError
        raise AssertionError(f"started {command}")

    monkeypatch.setattr(subprocess.Popen, "__init__", start)
    trees = [YAML(typ="safe", pure=True).load(text) for text in bases]
    found, runs = Outcomes(), Path("runs")
    for seed in range(number):
        rng = random.Random(seed)  # so that one that failed can be looked at alone
        index = rng.randrange(len(bases))
        text = mutate_text(rng, bases[index]) if seed % 2 else mutate_tree(rng, trees[index])
        _check(seed, rng, text.encode("utf-8", "surrogateescape"), runs, found)
        shutil.rmtree(runs, ignore_errors=True)
    assert found.plans > number / 50, "the mutations leave nothing of the specs"
    assert found.refusals > number / 4
    if number == 10_000:
        record(
            "21 mutations of valid specs",
            f"{number:,} texts and trees with keys and bytes lost, doubled, moved, of another type",
            "a plan or an error with its place, no traceback, no process started, each under a second",
            plans=found.plans,
            refusals=found.refusals,
            slowest_s=found.slowest_s,
        )


def _check(seed: int, rng: random.Random, text: bytes, runs: Path, found: Outcomes) -> None:
    Path("mutated.yaml").write_bytes(text)
    overrides = (
        [rng.choice(["train.seed=", "name=", "data.train=", "x="]) + rng.choice(PIECES)] if seed % 10 == 0 else []
    )
    cluster = rng.choice(["local", "devcluster", "h100"])
    started = time.process_time()
    try:
        prepared = prepare(Path("mutated.yaml"), overrides, cluster=cluster, runs=runs)
    except UserError as error:
        told = str(error)
        assert "Traceback" not in told, seed
        assert told.isprintable() or all(char.isprintable() or char == "\n" for char in told), seed
        assert not runs.exists(), f"{seed}: a refusal wrote {list(runs.rglob('*'))}"
        is_placed = "mutated.yaml:" in told or "override: " in told
        assert is_placed or not isinstance(error, SpecError), f"{seed}: {told}"  # noqa: PT017
        found.refusals += 1
    except BaseException as error:
        raise AssertionError(f"mutation {seed} on {cluster}: {type(error).__name__}: {error}") from error
    else:
        _check_plans(seed, prepared, runs)
        found.plans += 1
    seconds = time.process_time() - started
    found.slowest_s = max(found.slowest_s, seconds)
    assert seconds < 1, f"mutation {seed} took {seconds:.1f} s"


def _check_plans(seed: int, prepared: list[Prepared], runs: Path) -> None:
    for item in prepared:
        json.dumps(to_value(item.plan), allow_nan=False)
        assert item.paths.root.resolve().is_relative_to(runs.resolve()), seed
        assert item.plan.topology.world_size > 0, seed
        assert item.plan.batch.accumulation > 0, seed
        options = [line for line in item.script.splitlines() if line.startswith("#SBATCH")]
        assert len([line for line in options if "--job-name=" in line]) <= 1, seed
        assert not [line for line in options if line.startswith("#SBATCH --x")], seed


def mutate_text(rng: random.Random, text: str) -> str:
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(text))
        end = start + rng.choice([0, 0, 1, 1, 5, 30])
        middle = rng.choice([rng.choice(PIECES), text[end : end + 20], "", rng.choice(text.splitlines()) + "\n"])
        text = text[:start] + middle + text[end:]
    return text


def mutate_tree(rng: random.Random, tree: dict[str, Any]) -> str:
    """``tree`` as flow YAML with one to three keys lost, doubled, given another name, type or place."""
    pairs = _as_pairs(tree)
    for _ in range(rng.randint(1, 3)):
        sections = _list_sections(pairs)
        section = rng.choice([section for section in sections if section])
        index = rng.randrange(len(section))
        key, value = section[index]
        other = copy.deepcopy(rng.choice(rng.choice([section for section in sections if section]))[1])
        match rng.choice(["lose", "double", "other value", "other key", "value", "value", "move", "put elsewhere"]):
            case "lose":
                del section[index]
            case "double":
                section.insert(index, (key, copy.deepcopy(value)))
            case "other value":
                section.insert(index, (key, rng.choice(VALUES)))
            case "other key":
                section[index] = (rng.choice([_misspell(rng, key), rng.choice(VALUES)]), value)
            case "value":
                section[index] = (key, rng.choice(VALUES))
            case "move":
                section[index] = (key, other)
            case "put elsewhere":
                rng.choice(sections).append((key, copy.deepcopy(value)))
        if not pairs:
            break
    return _write(pairs)


class Pairs(list[tuple[Any, Any]]):
    """A section that may have a key twice."""


def _as_pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((key, _as_pairs(item)) for key, item in value.items())
    return value


def _list_sections(value: Any) -> list[Pairs]:
    if not isinstance(value, Pairs):
        return []
    return [value, *(section for _, item in value for section in _list_sections(item))]


def _misspell(rng: random.Random, key: Any) -> str:
    at = rng.randrange(len(str(key)) or 1)
    return str(key)[:at] + rng.choice(["", "x", "_", ".", "-"]) + str(key)[at + 1 :]


def _write(value: Any) -> str:
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{_write(key)}: {_write(item)}" for key, item in value) + "}"
    return json.dumps(value, ensure_ascii=False)
