"""The demo's judgement, and the demo itself where no chat model can be had."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.spec import load_spec

from ..conftest import ROOT

DEMO = ROOT / "examples" / "demo.py"


def summary(first: tuple[int, float], last: tuple[int, float], state: str = "completed") -> dict[str, Any]:
    series = {name: {"step": step, "value": value} for name, (step, value) in (("first", first), ("last", last))}
    return {"state": state, "reason": "rank 1 ended with exit code 1", "eval_loss": series}


def test_only_a_lower_held_out_loss_is_a_success() -> None:
    from demo import find_problem

    spec = load_spec(ROOT / "examples" / "demo.yaml").spec
    end = spec.train.max_steps
    assert end is not None
    assert find_problem(summary((0, 5.3), (end, 0.3)), spec) is None
    assert "not improved: 5.3000 -> 5.3000" in str(find_problem(summary((0, 5.3), (end, 5.3)), spec))
    assert "not measured" in str(find_problem(summary((0, 5.3), (0, 5.3)), spec))
    assert "not measured" in str(find_problem({**summary((0, 5.3), (end, 0.3)), "eval_loss": None}, spec))
    assert "failed: rank 1" in str(find_problem(summary((0, 5.3), (end, 0.3), "failed"), spec))


def test_shown_rows_are_of_different_teams() -> None:
    from demo import NUM_SHOWN, choose_rows

    rows = choose_rows(ROOT / "examples" / "data" / "triage_eval.jsonl")
    assert len({row["messages"][1]["content"].split(" | ")[0] for row in rows}) == NUM_SHOWN


def run_demo(folder: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """The demo without a home, a hub or an index; ``env`` comes on top."""
    offline = {
        "HOME": str(folder),
        "HF_HOME": str(folder / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # the discard port: refused at once
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, str(DEMO)],
        cwd=folder,
        env={**os.environ, **offline, **env},
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.ranks
def test_demo_without_a_chat_model_trains_the_built_in_one_and_says_so(tmp_path: Path) -> None:
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: no chat model could be had (hub: " in done.stderr
    assert "builtin:tiny" in done.stdout
    assert "held-out loss" in done.stdout


def test_demo_fails_where_the_run_does(tmp_path: Path) -> None:
    done = run_demo(tmp_path, TUNEYARD_RUNS="/dev/null/runs")
    assert done.returncode == 1
    assert "demo failed: tuneyard submit ended with exit code" in done.stderr
    assert done.stdout == ""
