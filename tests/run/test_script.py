"""A training script of the user's own: it runs as it would by hand, from the copy that was made at submit."""

import json
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

from launcher.contract.attempt import read_attempts
from launcher.contract.ledger import events, merge_metrics, read_run
from launcher.contract.manifest import find_problems
from launcher.contract.paths import RunPaths
from tests.conftest import ROOT, Tuneyard

from .conftest import write_profile

pytestmark = pytest.mark.ranks

PLAIN = """\
    import atexit
    import os
    import sys
    import threading
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    import mymodule  # beside the script

    numbers = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")]
    numbers += [os.environ[f"TUNEYARD_{name}"] for name in ("MICRO_BATCH", "ACCUMULATION", "GLOBAL_BATCH")]
    out = Path(os.environ["TUNEYARD_RUN_DIR"], f"out{os.environ['RANK']}")
    words = [__name__, Path(__file__).name, os.path.basename(os.getcwd()), mymodule.NAME, *numbers, *sys.argv[1:]]
    out.write_text("|".join(words))
    atexit.register(lambda: out.with_suffix(".atexit").touch())
    threading.Timer(1, lambda: out.with_suffix(".thread").touch()).start()
    pool = ThreadPoolExecutor()  # that nobody shuts down

    def write():
        out.with_suffix(".pool").touch()

    pool.submit(write)
    """

STEPS = """\
    import os
    import sys

    import torch.distributed as dist
    from jobs.run import current_run

    run = current_run()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    rank = os.environ.get("RANK", "0")
    start = 0
    if run.resume_from is not None:
        assert os.environ["TUNEYARD_RESUME_FROM"] == str(run.resume_from)
        start = int((run.resume_from / f"rank{rank}.txt").read_text())
    for step in range(start + 1, int(sys.argv[1]) + 1):
        run.log(step, loss=1 / step, **{"my/number": step})
        if step % 2 == 0:
            with run.checkpoint(step) as folder:
                (folder / f"rank{rank}.txt").write_text(str(step))
        if step == 3 and len(sys.argv) > 2 and rank == "1":
            raise LookupError("no such luck")
    """


@pytest.fixture
def project(tuneyard: Tuneyard) -> Path:
    folder = tuneyard.folder / "my project"
    folder.mkdir()
    (folder / "mymodule.py").write_text("NAME = 'as submitted'\n")
    return folder


def _spec(tuneyard: Tuneyard, project: Path, text: str, *args: object) -> str:
    (project / "train.py").write_text(textwrap.dedent(text))
    value = {
        "name": "mine",
        "stage": "script",
        "script": {"path": "my project/train.py", "args": [str(arg) for arg in args]},
        "train": {"micro_batch": 2, "global_batch": 8, "keep_last": 2, "keep_best": "loss"},
        "resources": {"gpus_per_node": 2, "time": "10m"},
        "tracking": {"wandb": "disabled"},
        "recovery": {"max_attempts": 1},
    }
    (tuneyard.folder / "mine.yaml").write_text(json.dumps(value))
    return "mine.yaml"


def _submit(tuneyard: Tuneyard, *arguments: str) -> "tuple[subprocess.CompletedProcess[str], RunPaths]":
    done = tuneyard("submit", *arguments, "--cluster", "local", "--wait", "--json")
    assert done.stdout, done.stderr
    return done, RunPaths(Path(json.loads(done.stdout.splitlines()[-1])["run_dir"]))


def test_a_script_that_knows_nothing_of_tuneyard_completes(tuneyard: Tuneyard, project: Path) -> None:
    spec = _spec(tuneyard, project, PLAIN, "--lr", "1e-4", "two words")
    done, paths = _submit(tuneyard, spec)
    assert done.returncode == 0, done.stderr
    for rank in "01":
        said = (paths.root / f"out{rank}").read_text().split("|")
        assert said[:4] == ["__main__", "train.py", "script", "as submitted"]
        assert said[4:8] == [rank, rank, "2", "2"]
        assert said[8:] == ["2", "2", "8", "--lr", "1e-4", "two words"]
        assert (paths.root / f"out{rank}.atexit").exists()
        assert (paths.root / f"out{rank}.thread").exists()
        assert (paths.root / f"out{rank}.pool").exists()
    assert json.loads(paths.completion.read_text())["run_id"] == paths.root.name
    assert tuneyard.status()["state"] == "completed"
    collected = tuneyard("collect", "last")
    assert collected.returncode == 0
    assert "warning" not in collected.stdout


def test_metrics_checkpoints_failure_and_resume_of_what_was_submitted(tuneyard: Tuneyard, project: Path) -> None:
    done, paths = _submit(tuneyard, _spec(tuneyard, project, STEPS, 5, "fail"))
    assert done.returncode == 1
    ending = read_attempts(paths)[0].ended
    assert ending is not None
    assert ending.rank == 1
    assert "LookupError: no such luck" in ending.reason
    assert "raise LookupError" in tuneyard("logs", "last").stdout  # the traceback in the failing rank's log

    for file in project.iterdir():  # as after a change of branches
        file.unlink()
    assert tuneyard("resume", "last", "script.path=other.py").returncode == 2
    resumed = tuneyard("resume", "last", "script.args=[5]", "--wait")
    assert resumed.returncode == 0, resumed.stderr
    attempts = read_attempts(paths)
    assert [attempt.resumed_from for attempt in attempts] == [None, "checkpoints/a01/step-000002"]
    rows = merge_metrics(read_run(paths))
    assert [(row["step"], row["loss"], row["my/number"]) for row in rows] == [(n, 1 / n, n) for n in range(1, 6)]
    assert [row["attempt"] for row in rows] == [1, 1, 2, 2, 2]
    assert {path.name for path in paths.published()} == {"step-000002", "step-000004"}
    for path in paths.published():
        assert find_problems(path) == []
        assert {file.name for file in path.glob("rank*")} == {"rank0.txt", "rank1.txt"}
    assert tuneyard.status()["step"] == 5
    assert len(events(read_run(paths), "checkpoint")) == 2

    again = tuneyard("resume", "last")
    assert again.returncode == 2
    assert "is complete at step 5" in again.stderr
    longer = tuneyard("resume", "last", "script.args=[6]", "--wait")
    assert longer.returncode == 0, longer.stderr
    assert read_attempts(paths)[2].resumed_from == "checkpoints/a02/step-000004"
    assert {path.name for path in paths.published()} == {"step-000004", "step-000006"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise SystemExit(3)", "train.py left by sys.exit(3)"),
        ("import sys; sys.exit('no rows')", "train.py left by sys.exit('no rows')"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("x = (", "SyntaxError"),
        ("from jobs.run import current_run; current_run().log(1, loss='high')", "loss: a metric is a number"),
        ("from jobs.run import current_run\nwith current_run().checkpoint(1): pass", "torch.distributed is not"),
    ],
)
def test_a_failing_script_is_told_in_its_own_words(tuneyard: Tuneyard, project: Path, line: str, reason: str) -> None:
    done, paths = _submit(tuneyard, _spec(tuneyard, project, line))
    assert done.returncode == 1
    ending = read_attempts(paths)[0].ended
    assert ending is not None
    assert reason in ending.reason
    assert not paths.completion.exists()


@pytest.mark.parametrize("line", ["x = (", "import nothing_of_that_name", "import sys; sys.exit('no rows')"])
def test_what_no_second_attempt_mends_has_none(tuneyard: Tuneyard, project: Path, line: str) -> None:
    done, paths = _submit(tuneyard, _spec(tuneyard, project, line), "recovery.max_attempts=3")
    assert done.returncode == 1
    assert len(read_attempts(paths)) == 1


def test_tokens_are_gone_once_the_end_is_on_record(tuneyard: Tuneyard, project: Path) -> None:
    """The exporter ends a little later, and a resume in between writes tokens of its own."""
    profile = write_profile(tuneyard.folder, scheduler="local")
    arguments = [_spec(tuneyard, project, "raise SystemExit(3)"), "tracking.wandb=offline", "--cluster", str(profile)]
    done = tuneyard("submit", *arguments, "--json", env={"HF_TOKEN": "canary"})
    paths = RunPaths(Path(json.loads(done.stdout)["run_dir"]))
    assert paths.secrets.read_text() == "HF_TOKEN=canary\n"
    deadline = time.monotonic() + 60
    while not any(attempt.ended for attempt in read_attempts(paths)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not paths.secrets.exists()


def test_a_rank_may_go_on_after_the_others_and_leave_by_exit_0(tuneyard: Tuneyard, project: Path) -> None:
    text = """\
        import os, sys, time
        if os.environ["RANK"] == "1":
            sys.exit(0)
        time.sleep(4)
        """
    done, paths = _submit(tuneyard, _spec(tuneyard, project, text))
    assert done.returncode == 0, done.stderr
    assert read_attempts(paths)[0].ended.state == "completed"  # type: ignore[union-attr]


def test_all_of_it_can_be_called_by_hand(tmp_path: Path, project: Path, tuneyard: Tuneyard) -> None:
    _spec(tuneyard, project, STEPS)
    import os
    import sys

    done = subprocess.run(
        [sys.executable, "train.py", "2"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "step 2  loss 0.5  my/number 2" in done.stdout
    assert "not kept" in done.stdout
    assert not list(project.glob("**/rank*"))


@pytest.mark.slurm
@pytest.mark.parametrize("script", ["hf_trainer.py", "accelerate_loop.py", "plain_torch.py"])
def test_an_example_runs_on_two_nodes(tuneyard: Tuneyard, devcluster: dict[str, str], script: str) -> None:
    profile = write_profile(tuneyard.folder, scheduler="slurm")
    path = ROOT / "examples" / "own_script" / script
    done = tuneyard(
        "submit",
        str(ROOT / "examples" / "own_script.yaml"),
        f"script.path={path}",
        "resources.nodes=2",
        "tracking.wandb=disabled",
        "--cluster",
        str(profile),
        "--wait",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    paths = RunPaths(Path(json.loads(done.stdout)["run_dir"]))
    assert len(read_attempts(paths)[0].nodes) == 2
    rows = merge_metrics(read_run(paths))
    if script == "plain_torch.py":
        assert rows == []
        assert "of the rows are sorted" in tuneyard("logs", "last", "--rank", "0").stdout
    else:
        assert rows[-1]["loss"] < rows[0]["loss"] - 1
        assert (paths.final / "model.safetensors").is_file()
        assert [find_problems(path) for path in paths.published()] == [[], []]


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_a_strategy_reaches_the_accelerator_of_a_script(tuneyard: Tuneyard, project: Path, strategy: str) -> None:
    text = """\
        import os
        from pathlib import Path
        import torch
        from accelerate import Accelerator
        from transformers import LlamaConfig, LlamaForCausalLM

        accelerator = Accelerator()
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
        optimizer = torch.optim.AdamW(model.parameters())
        model, optimizer = accelerator.prepare(model, optimizer)
        accelerator.backward(model(input_ids=torch.ones(2, 8, dtype=torch.long), labels=torch.ones(2, 8).long()).loss)
        optimizer.step()
        if accelerator.is_main_process:
            Path(os.environ["TUNEYARD_RUN_DIR"], "said").write_text(f"{accelerator.distributed_type} {type(model)}")
        """
    done, paths = _submit(tuneyard, _spec(tuneyard, project, text), f"parallel.strategy={strategy}")
    assert done.returncode == 0, done.stderr
    said = (paths.root / "said").read_text()
    assert ("DistributedType.FSDP" in said and "FSDPLlama" in said) or ("DEEPSPEED" in said and "Engine" in said)
    assert ("FSDP" in said) == (strategy == "fsdp")
