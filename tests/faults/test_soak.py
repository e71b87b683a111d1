"""Chaos: one long run on the development cluster, a fault every few minutes, by a seed.

    make soak                      # 60 minutes, seed 1
    make soak SEED=2 MINUTES=20

The model is tiny and each step is slowed down to the time that one of a large model takes: what is measured is how much
of the time is lost, not how fast the machine is.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.contract.ledger import Row, events, merge_metrics, read_run
from launcher.contract.paths import RunPaths
from tests.conftest import DEVCLUSTER, Tuneyard
from tests.reliability import record
from tests.run.conftest import SPEC

from .conftest import OPTIONS, WEIGHTS, Hurt, Submit, find_daemon, kill_node, preempt

SEED = int(os.environ.get("TUNEYARD_SOAK_SEED", "1"))
MINUTES = float(os.environ.get("TUNEYARD_SOAK_MINUTES", "60"))
FAULTS = 6
PACE = 1.0
STEPS = int(MINUTES * 60 / (PACE + 0.1))

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(int(MINUTES * 60 * 2) + 600)]


def _kill_rank(run: Hurt, dice: random.Random) -> None:
    os.kill(dice.choice(_newest_beats(run)).pid, signal.SIGKILL)


def _stop_rank(run: Hurt, dice: random.Random) -> None:
    os.kill(dice.choice(_newest_beats(run)).pid, signal.SIGSTOP)


def _preempt(run: Hurt, dice: random.Random) -> None:
    preempt(run)


def _requeue(run: Hurt, dice: random.Random) -> None:
    run.slurm("scontrol", "requeue", run.job)


def _kill_node(run: Hurt, dice: random.Random) -> None:
    node = dice.choice(run.attempts()[-1].nodes)
    number = run.attempts()[-1].number
    kill_node(run, node)
    run.wait_for(lambda: run.attempts()[-1].number > number, 120)
    _mend()


def _lose_slurmctld(run: Hurt, dice: random.Random) -> None:
    """And a rank dies meanwhile."""
    os.kill(find_daemon("slurmctld"), signal.SIGKILL)
    time.sleep(5)
    _kill_rank(run, dice)
    time.sleep(25)
    _mend()


def _damage_checkpoint(run: Hurt, dice: random.Random) -> None:
    """The newest one; a rank dies, and the one before it is to be taken."""
    newest = max(run.paths.published(), key=lambda path: path.name)
    with (newest / WEIGHTS).open("r+b") as stream:
        stream.seek(dice.randrange((newest / WEIGHTS).stat().st_size))
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    _kill_rank(run, dice)


def _cut_off(run: Hurt, dice: random.Random) -> None:
    attempt = run.attempts()[-1]
    link = ["ip", "link", "set", f"ty-{dice.choice(attempt.nodes)}"]
    subprocess.run([*link, "down"], check=True)
    try:
        run.wait_for(lambda: run.attempts()[-1].number > attempt.number, 180)
    finally:
        subprocess.run([*link, "up"], check=True)


KINDS: dict[str, Callable[[Hurt, random.Random], None]] = {
    "a rank is killed": _kill_rank,
    "a rank is stopped": _stop_rank,
    "preempted": _preempt,
    "requeued by hand": _requeue,
    "a node dies": _kill_node,
    "slurmctld is away and a rank dies": _lose_slurmctld,
    "the newest checkpoint is damaged and a rank dies": _damage_checkpoint,
    "a node is cut off": _cut_off,
}


def test_a_run_among_faults_is_as_one_without(submit: Submit, tuneyard: Tuneyard, mended: None) -> None:
    options = [f"train.max_steps={STEPS}", "train.save_every_steps=20", "resources.time=4h"]
    expected = _run_unhurt(tuneyard, options)
    run = submit(*options, "resources.partition=low", pace=PACE)
    dice = random.Random(SEED)
    begun = time.time()
    done = []
    for number, name in enumerate(dice.sample(list(KINDS), FAULTS)):
        due = begun + (number + 0.5 + dice.uniform(-0.2, 0.2)) * MINUTES * 60 / FAULTS
        while time.time() < due:
            assert run.status()["state"] not in ("failed", "cancelled"), run.tell()
            time.sleep(1)
        run.wait_for(lambda: _is_training(run), 300)
        done.append({"t": time.time() - begun, "fault": name, "attempt": run.attempts()[-1].number})
        print(done[-1], flush=True)
        KINDS[name](run, dice)
    assert run.wait_for_end(MINUTES * 60 * 2)["state"] == "completed", run.tell()
    found = measure_goodput(run.rows(), run)
    told = {"seed": SEED, "minutes": MINUTES, "steps": STEPS, "faults": done, **found}
    folder = Path("build")
    folder.mkdir(exist_ok=True)
    (folder / f"soak-{SEED}.json").write_text(json.dumps(told, indent=1) + "\n")
    losses = {row["step"]: row["loss"] for row in merge_metrics(run.rows()) if "loss" in row}
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses == {row["step"]: row["loss"] for row in merge_metrics(read_run(expected)) if "loss" in row}
    assert (run.paths.final / WEIGHTS).read_bytes() == (expected.final / WEIGHTS).read_bytes()
    run.check_nobody_left()
    record(
        f"20 chaos, seed {SEED}",
        ", ".join(str(item["fault"]) for item in done),
        "completed; each step's loss and the adapter as unhurt",
        minutes=MINUTES,
        **found,
    )


def measure_goodput(rows: list[Row], run: Hurt) -> dict[str, float]:
    """The effective training time ratio, and the shares of the wall time that it misses.

    ``goodput``: time in steps that count, over the wall time from the first start to the last step. ``repeated``: in
    steps that were done again. ``noticing``: from an attempt's last step to its end's record, or where there is none
    to the next attempt. ``waiting``: from there to the next attempt, in the queue or not. ``starting``: from an
    attempt's start to its first step's begin.
    """
    attempts = run.attempts()
    counted = {(row["attempt"], row["step"]) for row in merge_metrics(rows) if "loss" in row}
    parts = dict.fromkeys(("goodput", "repeated", "noticing", "waiting", "starting"), 0.0)
    before = end = attempts[0].started
    for attempt, following in zip(attempts, [*attempts[1:], None], strict=True):
        steps = [row for row in rows if row["attempt"] == attempt.number and "loss" in row]
        begun = [row["t"] for row in events(rows, "started") if row["attempt"] == attempt.number]
        before = begun[0] if begun and steps else attempt.started
        parts["starting"] += before - attempt.started
        for row in steps:
            part = "goodput" if (row["attempt"], row["step"]) in counted else "repeated"
            parts[part] += row["t"] - before
            before = end = row["t"]
        if following is not None:
            ended = min(attempt.ended.t if attempt.ended else following.started, following.started)
            parts["noticing"] += max(0.0, ended - before)
            parts["waiting"] += following.started - max(ended, before)
    wall = end - attempts[0].started
    return {name: round(seconds / wall, 4) for name, seconds in parts.items()} | {"wall_s": round(wall)}


def _run_unhurt(tuneyard: Tuneyard, options: list[str]) -> RunPaths:
    """The same run without faults: two ranks on this machine, DDP, which is exact."""
    (tuneyard.folder / "unhurt.yaml").write_text(SPEC.replace("name: tiny", "name: unhurt"))
    one_node = ["resources.nodes=1", "resources.gpus_per_node=2"]
    done = tuneyard(
        "submit", "unhurt.yaml", *OPTIONS, *options, *one_node, "--cluster", "local", "--wait", "--json", timeout=1200
    )
    assert done.returncode == 0, done.stderr
    return RunPaths(Path(json.loads(done.stdout.splitlines()[-1])["run_dir"]))


def _newest_beats(run: Hurt) -> list:  # type: ignore[type-arg]
    return run.beats(run.attempts()[-1].number)


def _is_training(run: Hurt) -> bool:
    """All ranks of the newest attempt, and it has published a checkpoint of its own or gone some way."""
    if not run.attempts() or run.attempts()[-1].ended is not None:
        return False
    beats, attempt = _newest_beats(run), run.attempts()[-1]
    return len(beats) == 2 and all(beat.phase == "train" and beat.step > attempt.first_step for beat in beats)


def _mend() -> None:
    subprocess.run([*DEVCLUSTER, "up", "--nodes", "4"], capture_output=True, check=True, timeout=120)
