"""What strangers may have written (names, paths, folders, checkpoints) is never run, and no secret is left anywhere."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.contract.attempt import read_attempts
from launcher.contract.files import read_json, write_json
from launcher.contract.manifest import MANIFEST, list_files
from launcher.contract.paths import RunPaths
from launcher.errors import UserError
from launcher.submit import Prepared, prepare
from tests.conftest import ROOT, Tuneyard
from tests.reliability import record
from tests.run.conftest import SPEC

TINY = SPEC.replace("eval: 8", "eval: 0.02")
CANARY = "canary-9b1d44e07f"
HOSTILE = [
    "a;touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "a\n#SBATCH --comment=pwned",
    "a\n",
    "a\ntouch pwned",
    "-x",
    "--wrap=touch pwned",
    "%j",
    "a/b",
    "..",
    "../../a",
    "a b",
    "x" * 300,
    "",
    "a\\",
    "#",
    "${PATH}",
    "\x00",
    "é\u202e",
]
PLACES = [
    "name",
    "resources.partition",
    "resources.account",
    "resources.qos",
    "resources.constraint",
    "tracking.project",
    "tracking.entity",
    "tracking.tags",
    "script.args",
    "script.path",
    "model.base",
    "model.revision",
    "data.train",
    "data.system",
    "stages",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    return tmp_path


def _prepare(folder: Path, place: str, value: str, cluster: str) -> list[Prepared]:
    """Plan a spec that has ``value`` at ``place``."""
    tree: dict[str, Any] = {"name": "safe", "resources": {"nodes": 1, "gpus_per_node": 1, "time": "10m"}}
    if place.startswith("script"):
        tree |= {"stage": "script", "script": {"path": "code/train.py"}}
    else:
        tree |= {"stage": "sft", "model": {"base": "builtin:tiny"}, "train": {"max_steps": 1}}
        tree |= {"data": {"train": "rows.jsonl", "format": "messages"}}
    section, _, key = place.partition(".")
    if place == "stages":
        tree["stages"] = {value: {}}
    elif key:
        tree.setdefault(section, {})[key] = [value] if key in ("tags", "args") else value
    else:
        tree[section] = value
    (folder / "safe.yaml").write_text(json.dumps(tree))
    return prepare(folder / "safe.yaml", [], cluster=cluster, runs=folder / "runs")


def _list_options(script: str) -> list[str]:
    return [line for line in script.splitlines() if line.startswith("#SBATCH")]


@pytest.mark.fault_class
def test_hostile_names_are_refused_or_stay_what_they_are(folder: Path) -> None:
    """Of what is accepted the job script is run, with nothing behind it."""
    (folder / "none.yaml").write_text("{scheduler: slurm, accelerator: cpu, gpus_per_node: 1, python: /bin/true}")
    (plain,) = _prepare(folder, "name", "plain", "none.yaml")
    num_options, refused, planned = len(_list_options(plain.script)), 0, 0
    for place in PLACES:
        for value in HOSTILE:
            before = set(folder.rglob("*"))
            try:
                prepared = _prepare(folder, place, value, "none.yaml")
            except UserError as error:
                told = str(error)
                refused += 1
            else:
                told, planned = "", planned + 1
                for item in prepared:
                    assert item.paths.root.resolve().is_relative_to(folder / "runs"), (place, value)
                    options = _list_options(item.script)
                    assert len(options) <= num_options + 2, (place, value)
                    assert not [line for line in options if "comment" in line], (place, value)
                    for line in options:
                        shlex.split(line)
                    env = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "1"}
                    (item.paths.root / "submitit").mkdir(exist_ok=True)
                    done = subprocess.run(["bash", str(item.paths.job_script)], env=env, capture_output=True, text=True)
                    assert done.returncode == 0, (place, value, done.stderr)
            assert "Traceback" not in told
            made = {path.relative_to(folder).parts[0] for path in set(folder.rglob("*")) - before}
            assert made <= {"runs", "safe.yaml"}, (place, value)
            assert not list(folder.rglob("pwned")), (place, value)
    assert refused > 100
    assert planned > 50
    record(
        "22 hostile names",
        f"{len(HOSTILE)} texts (quotes, $(...), newline and #SBATCH, .., 300 characters ...) at {len(PLACES)} keys",
        "refused, or planned with the script's options unchanged; the script is run and nothing of it is executed",
        refused=refused,
        planned=planned,
    )


@pytest.mark.faults
@pytest.mark.parametrize("runs", ["x" * 300, "-x", "a/../../b", "a b;$(id)'\"", "file"])
def test_a_hostile_folder_of_runs_is_used_as_it_is_or_refused(folder: Path, runs: str) -> None:
    (folder / "file").write_text("")
    (folder / "here").mkdir()
    tuneyard = Tuneyard(folder)
    tuneyard.folder = folder / "here"
    _prepare(folder, "name", "plain", "local")
    done = tuneyard("plan", "../safe.yaml", "--cluster", "local", f"--runs={runs if runs != 'file' else '../file'}")
    assert "Traceback" not in done.stderr
    if runs in ("x" * 300, "file"):
        assert done.returncode == 2, done.stderr
    else:
        assert done.returncode == 0, done.stderr
        (plan,) = Path(os.path.normpath(folder / "here" / runs)).glob("*/plan.json")
        assert plan.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.faults
def test_a_folder_of_somebody_else_is_not_run(folder: Path) -> None:
    """A pickle is in it, and tokens lie beside it."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    (item,) = _prepare(folder, "name", "plain", "local")
    os.chown(item.paths.root, 12345, -1)
    with pytest.raises(UserError, match="belongs to another user"):
        _prepare(folder, "name", "plain", "local")
    write_json(item.paths.submission, {"t": 1.0, "run_id": item.plan.run_id, "run_dir": "", "cluster": "local",
                                       "scheduler": "local", "pid": 1, "pid_start": 0})  # fmt: skip
    tuneyard = Tuneyard(folder)
    refused = tuneyard("resume", item.plan.run_id)
    assert refused.returncode == 2
    assert "belongs to another user (uid 12345)" in refused.stderr
    done = subprocess.run(["bash", str(item.paths.job_script)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "belongs to another user; nothing was run" in done.stderr
    item.paths.submission.unlink()
    elsewhere = folder / "elsewhere"
    item.paths.root.rename(elsewhere)
    item.paths.root.symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link"):
        _prepare(folder, "name", "plain", "local")


@pytest.mark.faults
@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "MY_SECRET"])
def test_a_secret_of_the_environment_cannot_be_put_into_a_spec(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, CANARY)
    with pytest.raises(UserError, match=f"{name} is a secret") as caught:
        _prepare(folder, "tracking.project", f"${{env:{name}}}", "local")
    assert CANARY not in str(caught.value)


@pytest.mark.faults
@pytest.mark.ranks
def test_a_secret_is_in_no_file_and_no_argument(tuneyard: Tuneyard) -> None:
    """While the run goes on it stands in the one file that is the owner's alone."""
    (tuneyard.folder / "tiny.yaml").write_text(TINY)
    env = {
        "WANDB_API_KEY": CANARY + "a" * 30,
        "HF_TOKEN": f"hf_{CANARY}",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "HOME": str(tuneyard.folder),
    }
    one = ["resources.nodes=1", "resources.gpus_per_node=1", "train.micro_batch=1", "tracking.wandb=online"]
    one += ["train.max_steps=6"]
    told = tuneyard("plan", "tiny.yaml", *one, "--cluster", "local", "--script", env=env)
    done = tuneyard("submit", "tiny.yaml", *one, "--cluster", "local", env=env)
    assert done.returncode == 0, done.stderr
    assert CANARY not in told.stdout + told.stderr + done.stdout + done.stderr
    (plan,) = tuneyard.folder.glob("runs/*/plan.json")
    paths = RunPaths(plan.parent)
    num_looks = 0
    while tuneyard.status()["state"] == "running":
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert CANARY.encode() not in process.read_bytes(), process
            except OSError:
                continue
        assert set(_find(tuneyard.folder)) <= {paths.secrets}
        if paths.secrets.exists():
            assert paths.secrets.stat().st_mode & 0o777 == 0o600
        num_looks += 1
    assert num_looks > 5
    assert tuneyard.status()["state"] == "completed"
    tuneyard("collect", "last", env=env)
    assert _find(tuneyard.folder) == []
    assert not paths.secrets.exists()
    record(
        "22 secrets",
        "WANDB_API_KEY and HF_TOKEN hold a canary through plan, submit, a run and collect",
        "it is in no file but the 0600 one, which goes with the run, and in no argument of any process",
        looks=num_looks,
    )


def _find(folder: Path) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


PAYLOAD = """\
import os, pickle, sys, zipfile, torch
class Payload:
    def __reduce__(self):
        return os.system, (f"touch {sys.argv[1]}",)
path = sys.argv[2]
if path.endswith(".metadata"):
    pickle.dump(Payload(), open(path, "wb"))
else:
    torch.save({"a": Payload()}, path)
"""


def _poison(path: Path, pwned: Path) -> None:
    subprocess.run([sys.executable, "-c", PAYLOAD, str(pwned), str(path)], check=True)


@pytest.mark.faults
@pytest.mark.ranks
@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_weights_that_are_code_are_not_loaded(tuneyard: Tuneyard, name: str) -> None:
    (tuneyard.folder / "tiny.yaml").write_text(TINY)
    model, pwned = tuneyard.folder / "model", tuneyard.folder / "pwned"
    make = (
        "import sys; from pathlib import Path; from jobs.tiny import write_tiny; folder = Path(sys.argv[1])\n"
        "write_tiny(folder)"
    )
    model.mkdir()
    subprocess.run([sys.executable, "-c", make, str(model)], check=True, cwd=ROOT)
    if name == "adapter_model.bin":
        base = tuneyard.folder / "base"
        model.rename(base)
        model.mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 16, "lora_alpha": 32}
        write_json(model / "adapter_config.json", {**config, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"})
        for file in base.glob("token*"):
            (model / file.name).write_bytes(file.read_bytes())
    else:
        for file in model.glob("*.safetensors"):
            file.unlink()
    _poison(model / name, pwned)
    one = ["resources.nodes=1", "resources.gpus_per_node=1", "tracking.wandb=disabled", f"model.base={model}"]
    done = tuneyard("submit", "tiny.yaml", *one, "--cluster", "local", "--wait")
    assert done.returncode == 1, done.stderr
    # An adapter is read from safetensors or not at all.
    expected = "Weights only load failed" if name == "pytorch_model.bin" else "no adapter_model.safetensors"
    assert expected in done.stderr, done.stderr
    assert not pwned.exists()


@pytest.mark.faults
@pytest.mark.ranks
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_a_checkpoint_that_is_code_is_not_loaded(tuneyard: Tuneyard, strategy: str) -> None:
    """Every file of it that may be unpickled, one after the other; its manifest is made to fit."""
    (tuneyard.folder / "tiny.yaml").write_text(TINY)
    pwned = tuneyard.folder / "pwned"
    small = ["resources.nodes=1", "tracking.wandb=disabled", "train.max_steps=2", f"parallel.strategy={strategy}"]
    done = tuneyard("submit", "tiny.yaml", *small, "--cluster", "local", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    paths = RunPaths(Path(json.loads(done.stdout)["run_dir"]))
    checkpoint = paths.published()[-1]
    suffixes = (".pt", ".pth", ".bin", ".metadata", ".distcp")
    targets = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name.endswith(suffixes))
    targets = [path for path in targets if path.name != "training_args.bin"]  # nothing reads it again
    assert targets
    # One rank's state stands for those of the others.
    kinds = {path.name.replace("rank_1", "rank_0").replace("_1", "_0"): path for path in reversed(targets)}
    started = time.monotonic()
    for path in kinds.values():
        whole = path.read_bytes()
        _poison(path, pwned)
        manifest = read_json(checkpoint / MANIFEST)
        files = {name: facts for name, facts in list_files(checkpoint).items() if name != MANIFEST}
        write_json(checkpoint / MANIFEST, {**manifest, "files": files})
        resumed = tuneyard("resume", "last", "train.max_steps=4", "--wait")
        assert not pwned.exists(), path
        assert resumed.returncode == 1, (path, resumed.stderr)
        path.write_bytes(whole)
    files = {name: facts for name, facts in list_files(checkpoint).items() if name != MANIFEST}
    write_json(checkpoint / MANIFEST, {**read_json(checkpoint / MANIFEST), "files": files})
    resumed = tuneyard("resume", "last", "train.max_steps=4", "--wait")
    assert resumed.returncode == 0, resumed.stderr
    assert read_attempts(paths)[-1].resumed_from == checkpoint.relative_to(paths.root).as_posix()
    record(
        f"22 checkpoints that are code, {strategy}",
        f"each of {', '.join(sorted(kinds))} is replaced by a pickle that runs a command, with a manifest to match",
        "the attempt fails and nothing is run; with the files as they were the run goes on",
        seconds=time.monotonic() - started,
    )
