"""What ``collect`` says of a run: whole, torn, empty."""

import json
from pathlib import Path

import pytest

from launcher.collect.summary import summarize
from launcher.collect.terminal import format_seconds, format_summary
from launcher.contract.attempt import Attempt, Ending
from launcher.contract.ledger import LedgerWriter
from launcher.contract.paths import RunPaths

from .fake_run import make_run, write_completion, write_steps


def end(paths: RunPaths, state: str = "completed", reason: str = "all ranks finished") -> None:
    ending = Ending(t=1107.0, state=state, exit_code=0, reason=reason)  # type: ignore[arg-type]
    Attempt(number=1, started=1000.0, nodes=["n0"], ended=ending).save(paths)


def test_a_completed_run(tmp_path: Path) -> None:
    paths = make_run(tmp_path)
    write_steps(paths, attempt=1, steps=range(0, 11), loss=1.0)
    for attempt in (1, 2):
        writer = LedgerWriter(paths.ledger(attempt), attempt)
        writer.event("skipped_rows", count=3, rows=["a.json:1", "a.json:2", "a.json:9"])
        writer.close()
    write_completion(paths)
    end(paths)

    summary = summarize(paths, "completed")

    assert json.loads(paths.summary.read_text()) == summary
    assert (summary["state"], summary["steps"], summary["attempts"]) == ("completed", 10, 1)
    assert summary["eval_loss"] == {
        "first": {"step": 0, "value": 2.0},
        "last": {"step": 10, "value": 2.1},
        "best": {"step": 0, "value": 2.0},
    }
    assert (summary["tokens"], summary["tokens_per_s"], summary["wall_seconds"]) == (640, 105.0, 107.0)
    assert summary["checkpoints"] == [{"path": "checkpoints/a01/step-000020", "step": 20, "verified": True}]
    assert summary["final_files"] == ["final/adapter_model.safetensors", "final/completion.json"]
    assert summary["skipped_rows"] == 3
    assert format_summary(summary).splitlines() == [
        "sft-tiny.0001 completed",
        "  stage        sft",
        "  steps        10 in 1 attempt",
        "  loss         1.0000 (step 0) -> 1.1000 (step 10), best 1.0000 (step 0)",
        "  eval loss    2.0000 (step 0) -> 2.1000 (step 10), best 2.0000 (step 0)",
        "  tokens       640",
        "  speed        105 tokens/s (median)",
        "  wall time    1 min 47 s",
        "  checkpoints  1 of 1 verified, newest checkpoints/a01/step-000020",
        "  final        2 files in final/",
        "warning: 3 rows of the data were skipped; the ledger's skipped_rows events list them",
    ]


def test_no_ledger(tmp_path: Path) -> None:
    summary = summarize(make_run(tmp_path), "pending")
    assert (summary["state"], summary["steps"], summary["loss"]) == ("pending", 0, None)
    assert format_summary(summary).startswith("sft-tiny.0001 pending\n")


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        summarize(RunPaths(tmp_path), "pending")
    assert list(tmp_path.iterdir()) == []


def test_a_torn_ledger_a_broken_checkpoint_and_nan(tmp_path: Path) -> None:
    paths = make_run(tmp_path)
    write_steps(paths, attempt=1, steps=range(0, 8), loss=1.0)
    with paths.ledger(1).open("ab") as stream:
        stream.write(b'{"v":1,"kind":"metric","t":1.0,"attem')
    write_steps(paths, attempt=2, steps=range(5, 7), loss=float("nan"))
    write_completion(paths)
    (paths.checkpoint(1, 20) / "weights.bin").write_bytes(b"flipped")
    paths.completion.unlink()
    end(paths, "failed", "rank 1 on n0: CUDA out of memory")

    summary = summarize(paths, "failed", "rank 1 on n0: CUDA out of memory")

    assert json.loads(paths.summary.read_text(), parse_constant=pytest.fail) == summary
    assert summary["steps"] == 7
    assert summary["loss"]["last"] == {"step": 7, "value": 1.07}
    assert not summary["checkpoints"][0]["verified"]
    assert [text.split(":")[0] for text in summary["warnings"]] == [
        "checkpoints/a01/step-000020",
        "loss is not finite at 2 steps, the first is 5",
        "eval_loss is not finite at 1 steps, the first is 5",
    ]
    assert format_summary(summary).startswith("sft-tiny.0001 failed: rank 1 on n0: CUDA out of memory\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.25, "4.2 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
