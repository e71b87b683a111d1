"""The exporter as a process with the real W&B client, offline: every step once, whatever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.collect.compare import compare
from launcher.collect.sync import format_sync, sync
from launcher.collect.wandb_records import read_records
from launcher.collect.wandb_run import ExportPaths
from launcher.contract.attempt import Attempt, Ending
from launcher.contract.ledger import merge_metrics, read_run
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

from .fake_run import make_run, write_completion, write_steps

KEY_CANARY = "ca0a7y" + "0" * 34
TOKEN_CANARY = "hf_canary_in_no_file"


class Exporter:
    """An exporter process of the test's own, as the supervisor starts it."""

    def __init__(self, paths: RunPaths, home: Path, end_seconds: float = 40, **env: str) -> None:
        self.export = ExportPaths(paths.wandb)
        self.export.end.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launcher.collect.exporter", str(paths.root), str(end_seconds)],
            env={**os.environ, "HOME": str(home), "HF_TOKEN": TOKEN_CANARY, **env},
        )

    def finish(self, limit: float = 45) -> int:
        """Set the end mark and wait."""
        self.export.root.mkdir(parents=True, exist_ok=True)
        self.export.end.touch()
        return self.process.wait(limit)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Exporter]]:
    home, started = tmp_path / "home", []
    home.mkdir()

    def start_exporter(paths: RunPaths, **arguments: object) -> Exporter:
        started.append(Exporter(paths, home, **arguments))  # type: ignore[arg-type]
        return started[-1]

    yield start_exporter
    for exporter in started:
        if exporter.process.poll() is None:
            exporter.process.kill()
            exporter.process.wait()
    assert list(home.rglob("*")) == [], "W&B wrote in the home folder"


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def find_core(exporter: Exporter) -> int | None:
    """The wandb-core that serves a segment, and not the one of ``wandb leet inspect``."""
    for client in children(exporter.process.pid):
        for child in children(client):
            line = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if line[0].endswith(b"wandb-core") and b"leet" not in line:
                return child
    return None


def wait_for(condition: Callable[[], object], seconds: float = 20) -> object:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.3)
    raise AssertionError("did not happen in time")


def logged_rows(paths: RunPaths) -> list[dict]:
    """W&B's rows in the shape of the ledger's, in the order of writing."""
    rows = [row for segment in read_records(ExportPaths(paths.wandb)).segments for row in segment.rows]
    return [
        {"step": row["global_step"], **{key: row[key] for key in row if key[0] != "_" and key != "global_step"}}
        for row in rows
    ]


def ledger_rows(paths: RunPaths) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key not in ("v", "kind", "t")}
        for row in merge_metrics(read_run(paths))
    ]


def assert_no_canary(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            assert KEY_CANARY.encode() not in data, path
            assert TOKEN_CANARY.encode() not in data, path


def test_started_late_mirrors_the_merged_view(tmp_path: Path, start: Callable[..., Exporter]) -> None:
    paths = make_run(tmp_path / "runs with space", adapter=True)
    write_steps(paths, attempt=1, steps=range(0, 9), loss=1.0)
    write_steps(paths, attempt=2, steps=range(5, 13), loss=2.0)
    write_completion(paths)
    exporter = start(paths, WANDB_API_KEY=KEY_CANARY, WANDB_RUN_ID="of-the-caller", WANDB_SERVICE="3-1-tcp-x-1")
    assert exporter.finish() == 0, exporter.export.log.read_text()

    assert logged_rows(paths) == ledger_rows(paths)
    assert [row["loss"] for row in logged_rows(paths)][4:7] == [1.04, 2.05, 2.06]
    assert "eval_loss" in logged_rows(paths)[5]
    (segment,) = exporter.export.segments()
    inspected = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_CACHE_DIR": str(tmp_path / "cache")},
    ).stdout
    records = [json.loads(line) for line in inspected.splitlines()]
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    assert run["display_name"] == run["run_group"] == paths.root.name
    assert (run["job_type"], run["tags"]) == ("sft", ["a tag"])
    assert run["run_id"] == json.loads(exporter.export.identity.read_text())["id"]
    assert run["config"]["update"]["git"] == {"commit": "abc"}
    assert "env" not in run["config"]["update"]["cluster"]
    artifacts = {r["artifact"]["type"]: r["artifact"] for r in records if r["type"] == "artifact"}
    assert [item["path"] for item in artifacts["model"]["manifest"]["contents"]] == [
        "adapter_model.safetensors",
        "completion.json",
    ]
    assert len(artifacts["checkpoint-manifests"]["manifest"]["contents"]) == 1
    assert records[-1]["type"] == "exit"
    assert str(os.uname().nodename) not in json.dumps(run)
    assert_no_canary(tmp_path)

    # Started again after the end: nothing to do, and nothing is written a second time.
    assert start(paths).finish() == 0
    assert len(exporter.export.segments()) == 1


def test_live_across_attempts_and_a_restart_of_the_exporter(tmp_path: Path, start: Callable[..., Exporter]) -> None:
    paths = make_run(tmp_path)
    write_steps(paths, attempt=1, steps=range(0, 9), loss=1.0)
    first = start(paths)
    wait_for(lambda: 7 in steps_on_record(paths))
    assert 8 not in steps_on_record(paths), "the newest step may be half a row"
    # All but SIGKILL is ignored, and a killed exporter leaves no process behind.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        first.process.send_signal(number)
    client = children(first.process.pid)[0]
    os.kill(client, signal.SIGTERM)
    core = find_core(first)
    time.sleep(0.5)
    assert first.process.poll() is None
    first.process.kill()
    first.process.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in (client, core)))

    write_steps(paths, attempt=2, steps=range(5, 13), loss=2.0)
    assert start(paths).finish() == 0
    rows = logged_rows(paths)
    assert [row["step"] for row in rows] == list(range(13))
    assert [row["attempt"] for row in rows] == [1] * 8 + [2] * 5


def test_wandb_core_killed_loses_nothing(tmp_path: Path, start: Callable[..., Exporter]) -> None:
    paths = make_run(tmp_path)
    write_steps(paths, attempt=1, steps=range(0, 5), loss=1.0)
    exporter = start(paths)
    last = 5
    for number in (signal.SIGTERM, signal.SIGKILL):  # the first is what Slurm sends to every process of a step
        wait_for(lambda last=last: last - 2 in steps_on_record(paths))
        core = int(str(wait_for(lambda: find_core(exporter))))
        write_steps(paths, attempt=1, steps=range(last, last + 50), loss=1.0)
        time.sleep(0.4)  # rows are on their way
        os.kill(core, number)
        last += 70
        write_steps(paths, attempt=1, steps=range(last - 20, last), loss=1.0)
    assert exporter.finish() == 0, exporter.export.log.read_text()
    assert len(exporter.export.segments()) == 3
    assert sorted(logged_rows(paths), key=lambda row: row["step"]) == ledger_rows(paths)
    assert compare(paths, Plan.load(paths.plan)).duplicates == []


def test_the_end_is_within_the_limit(tmp_path: Path, start: Callable[..., Exporter]) -> None:
    limit = 14
    stopped, unreachable = make_run(tmp_path / "stopped"), make_run(tmp_path / "unreachable", mode="online")
    for paths in (stopped, unreachable):
        write_steps(paths, attempt=1, steps=range(0, 5), loss=1.0)
    first = start(stopped, end_seconds=limit)
    wait_for(lambda: 2 in steps_on_record(stopped))
    core = int(str(wait_for(lambda: find_core(first))))
    os.kill(core, signal.SIGSTOP)
    write_steps(stopped, attempt=1, steps=range(5, 10), loss=1.0)
    # Here the end comes while wandb.init still waits for the server.
    second = start(unreachable, end_seconds=limit, WANDB_API_KEY=KEY_CANARY, WANDB_BASE_URL="http://127.0.0.1:9")
    wait_for(second.export.segments)

    begin = time.monotonic()
    second.export.end.touch()
    assert (first.finish(), second.finish()) == (0, 0), first.export.log.read_text() + second.export.log.read_text()
    assert time.monotonic() - begin < limit + 1
    assert not is_alive(core)
    for paths in (stopped, unreachable):
        assert sorted(logged_rows(paths), key=lambda row: row["step"]) == ledger_rows(paths)
    assert_no_canary(tmp_path)


def test_online_without_a_key_falls_back_at_once(tmp_path: Path, start: Callable[..., Exporter]) -> None:
    paths = make_run(tmp_path, mode="online")
    write_steps(paths, attempt=1, steps=range(0, 5), loss=1.0)
    exporter = start(paths)
    wait_for(lambda: 3 in steps_on_record(paths))
    assert exporter.finish() == 0
    assert "falling back to offline" in exporter.export.log.read_text()


def test_ends_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    paths = make_run(tmp_path)
    write_steps(paths, attempt=1, steps=range(0, 5), loss=1.0)
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess as s, sys, time; print(s.Popen(sys.argv[1:]).pid, flush=True); time.sleep(60)",
            *(sys.executable, "-m", "launcher.collect.exporter", str(paths.root), "10"),
        ],
        stdout=subprocess.PIPE,
    )
    assert supervisor.stdout is not None
    exporter = int(supervisor.stdout.readline())
    wait_for(lambda: 3 in steps_on_record(paths))
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: not is_alive(exporter), 12)
    assert steps_on_record(paths) == {0, 1, 2, 3}


def test_sync_completes_what_a_killed_exporter_left(
    tmp_path: Path, start: Callable[..., Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    paths = make_run(tmp_path, adapter=True)
    write_steps(paths, attempt=1, steps=range(0, 5), loss=1.0)
    Attempt(number=1, started=1.0, nodes=["n"]).save(paths)
    exporter = start(paths)
    wait_for(lambda: 3 in steps_on_record(paths))
    going_on = sync(paths, "running")
    assert (going_on.is_over, going_on.missing_rows) == (False, 1)
    exporter.process.kill()
    write_steps(paths, attempt=1, steps=range(5, 10), loss=1.0)
    write_completion(paths)
    ending = Ending(t=9.0, state="completed", exit_code=0, reason="all ranks finished")
    Attempt(number=1, started=1.0, nodes=["n"], ended=ending).save(paths)

    result = sync(paths, "failed")
    assert (result.ledger_rows, result.recorded_rows, result.duplicate_rows, result.missing_rows) == (10, 10, 0, 0)
    assert (result.missing_artifacts, result.upload) == ([], "no-login")
    assert f"then: tuneyard sync {paths.root.name}" in format_sync(result)
    assert logged_rows(paths) == ledger_rows(paths)
    assert sync(paths, "failed") == result, "a second time there is nothing to write"


def test_disabled_ends_at_once(tmp_path: Path, start: Callable[..., Exporter]) -> None:
    paths = make_run(tmp_path, mode="disabled")
    exporter = start(paths)
    assert exporter.process.wait(10) == 0
    assert not paths.wandb.exists()
    assert "disabled" in format_sync(sync(paths, "completed"))


def steps_on_record(paths: RunPaths) -> set[int]:
    return {row["_step"] for item in read_records(ExportPaths(paths.wandb)).segments for row in item.rows}


def is_alive(pid: int | None) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
