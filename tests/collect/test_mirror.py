"""The rules of the mirror that need no W&B: when a step is whole, what is sent again, what is told to W&B."""

import json
from pathlib import Path

from launcher.collect.compare import compare_records
from launcher.collect.follow import LedgerFollower
from launcher.collect.wandb_export import select_proven
from launcher.collect.wandb_records import SENT_MARK, Records, Segment, parse_records
from launcher.collect.wandb_run import ExportPaths, is_owner, keep_id, make_environment, take_ownership
from launcher.contract.ledger import LedgerWriter

from .fake_run import make_run, write_steps


def test_follower_hands_out_whole_steps_once(tmp_path: Path) -> None:
    paths = make_run(tmp_path)
    follower = LedgerFollower(paths)
    assert follower.take(ended=False) == []
    write_steps(paths, attempt=1, steps=range(0, 6), loss=1.0)
    assert [row["step"] for row in follower.take(ended=False)] == [0, 1, 2, 3, 4]
    with paths.ledger(1).open("ab") as stream:
        stream.write(b'{"v":1,"kind":"metric","t":1.0,"attem')  # torn by a kill
    write_steps(paths, attempt=2, steps=range(3, 6), loss=2.0)
    assert follower.take(ended=False) == []
    write_steps(paths, attempt=2, steps=range(6, 7), loss=2.0)
    (row,) = follower.take(ended=False)
    assert (row["step"], row["attempt"], row["loss"], row["eval_loss"]) == (5, 2, 2.05, 3.05)
    assert [row["step"] for row in follower.take(ended=True)] == [6]
    assert follower.take(ended=True) == []


def test_follower_waits_for_the_second_half_of_a_line(tmp_path: Path) -> None:
    paths = make_run(tmp_path)
    writer = LedgerWriter(paths.ledger(1), 1)
    writer.metric(1, loss=1.0)
    whole = paths.ledger(1).read_bytes()
    follower = LedgerFollower(paths)
    paths.ledger(1).write_bytes(whole[:20])
    assert follower.take(ended=True) == []
    paths.ledger(1).write_bytes(whole)
    assert [row["loss"] for row in follower.take(ended=True)] == [1.0]


def make_segment(folder: Path, steps: list[int], *, sent: bool = False, server_step: int = 0) -> Segment:
    folder.mkdir()
    if sent:
        (folder / SENT_MARK).touch()
    lines = [json.dumps({"type": "history", "history": {"item": {"loss": 1}, "step": {"num": s}}}) for s in steps]
    return parse_records(folder / "run-x.wandb", [*lines, "torn {"], server_step)


def test_cut_online_segment_is_uncertain(tmp_path: Path) -> None:
    segments = [
        make_segment(tmp_path / "run-1", [0, 1], sent=True),
        make_segment(tmp_path / "run-2", [2, 3, 4]),
        make_segment(tmp_path / "offline-run-3", [4, 5, 5]),
    ]
    found = compare_records(list(range(8)), {"final": "aa"}, Records(segments=segments))
    assert (found.recorded, found.uncertain) == ([0, 1, 4, 5], [2, 3])
    assert (found.duplicates, found.missing, found.artifacts) == ([5], [6, 7], ["final"])
    # The server says that it goes on with step 3, so 2 has arrived; offline nobody can tell.
    assert select_proven({2, 3}, 3, online=True) == {2}
    assert select_proven({2, 3}, 0, online=False) == {2, 3}
    resumed = make_segment(tmp_path / "run-4", [3], sent=True, server_step=3)
    records = Records(segments=[*segments, resumed])
    assert (sorted(set(records.recorded)), records.uncertain) == ([0, 1, 2, 3, 4, 5], set())
    assert records.recorded[3] == 1


def test_identity_is_made_once_and_owned_by_the_newest(tmp_path: Path) -> None:
    export = ExportPaths(tmp_path / "wandb")
    made = keep_id(export, "sft of Ünï.2026/1" + "x" * 80)
    assert keep_id(export, "another name") == made
    assert made.isascii()
    assert len(made) <= 49
    assert not set(made) & set("/\\#?%: .")
    old, new = take_ownership(export), take_ownership(export)
    assert (is_owner(export, old), is_owner(export, new)) == (False, True)
    assert sorted(path.name for path in export.root.iterdir()) == ["owner", "run.json"]


def test_environment_of_the_caller_stays_out(tmp_path: Path) -> None:
    base = {"PATH": "/bin", "WANDB_API_KEY": "k", "HF_TOKEN": "h", "WANDB_SERVICE": "s", "WANDB_BASE_URL": "http://x"}
    online = make_environment(ExportPaths(tmp_path), online=True, base=base)
    offline = make_environment(ExportPaths(tmp_path), online=False, base=base)
    assert (online["WANDB_API_KEY"], "WANDB_API_KEY" in offline) == ("k", False)
    assert {"HF_TOKEN", "WANDB_SERVICE"}.isdisjoint({*online, *offline})
    assert (offline["WANDB_BASE_URL"], offline["PATH"]) == ("http://x", "/bin")
