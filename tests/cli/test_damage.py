"""Files of a run that are damaged: every command says which and what to do, and none ends in a traceback."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.contract.heartbeat import beat
from launcher.contract.ledger import LedgerWriter
from launcher.contract.lineage import Lineage
from launcher.contract.manifest import publish
from launcher.contract.paths import RunPaths
from tests.pipelines import end, hand_over_gone, make_pipeline
from tests.plans import LOCAL

DAMAGE = {"cut off": b"{", "a list": b"[]", "keys missing": b'{"run_id": "x"}', "not UTF-8": b'{"run_id": "caf\xe9"}'}
FILES = (
    "pipeline.json",
    "sft/plan.json",
    "sft/spec.json",
    "sft/submission.json",
    "sft/attempts/a01.json",
    "sft/lineage.json",
    "sft/heartbeat/rank0.json",
    "sft/ledger/a01.jsonl",
    "sft/checkpoints/a01/step-000005/manifest.json",
    "sft/intent.json",
)
COMMANDS = (
    ("status",),
    ("status", "chain"),
    ("status", "chain/sft", "--json"),
    ("collect", "chain"),
    ("collect", "chain/sft", "--json"),
    ("resume", "chain/sft"),
    ("retry", "chain"),
    ("logs", "chain/sft"),
    ("cancel", "chain", "-y"),
)


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline whose first stage failed, as its files are."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\n')
    sft, dpo = make_pipeline(tmp_path / "runs", "sft", "dpo", cluster=replace(LOCAL, confirm_gpu_hours=0.0))
    for paths in (sft, dpo):
        for file in (paths.plan, paths.spec):
            file.write_text(file.read_text().replace("/data/rows.jsonl", str(rows)))
        hand_over_gone(paths, t=1.0)
    Lineage(t=1.0, run_id="chain-000000/sft").save(sft)
    writer = LedgerWriter(sft.ledger(1), 1)
    writer.metric(5, loss=1.0)
    writer.close()
    beat(sft, rank=0, attempt=1, step=5, phase="train")
    folder = sft.checkpoint(1, 0).parent / ".writing"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("5")
    publish(folder, sft.checkpoint(1, 5), step=5, attempt=1, world_size=1, strategy="ddp", metrics={})
    end(sft, t=2.0)
    sft.supervisor_log(1).parent.mkdir(parents=True)
    sft.supervisor_log(1).write_text("it failed\n")
    monkeypatch.chdir(tmp_path)
    return sft.root.parent


def _run(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[object, str]:
    monkeypatch.setattr(sys, "argv", ["tuneyard", *command])
    code: object = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    told = capfd.readouterr()
    return code, told.out + told.err


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_by_every_command_that_needs_it(
    chain: Path, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(chain, tmp_path / "whole")
    usual = {command: _run(command, monkeypatch, capfd) for command in COMMANDS}
    is_told = False
    for name, text in DAMAGE.items():
        for command in COMMANDS:
            shutil.rmtree(chain)
            shutil.copytree(tmp_path / "whole", chain)
            (chain / file).write_bytes(text)
            code, told = _run(command, monkeypatch, capfd)
            assert code in (0, 2), (name, command, told)
            if (code, told) != usual[command] and "ledger" not in file:  # of it a torn row is left out
                assert Path(file).name in told, (name, command, told)
                is_told = True
            assert RunPaths(chain / "sft").checkpoint(1, 5).exists()
    # What the run is made from is read by its ranks.
    assert is_told or file in ("sft/ledger/a01.jsonl", "sft/lineage.json")
