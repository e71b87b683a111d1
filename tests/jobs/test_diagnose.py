"""The first failing rank, and what is known to cause the like."""

from pathlib import Path

import pytest

from jobs.diagnose import explain, find_hint
from jobs.ranks import RankExit
from launcher.contract.attempt import Attempt
from launcher.contract.files import write_json, write_text
from launcher.contract.paths import RunPaths


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "GPU memory ran out"),
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
            "host",
        ),
        (
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
            "host",
        ),
        ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE)", "timed out"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("OSError: [Errno 122] Disk quota exceeded: 'model.safetensors'", "disk is full"),
        ("OSError: [Errno 30] Read-only file system: 'a01.jsonl'", "read-only"),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo", "HF_TOKEN"),
        ("torch.distributed.DistNetworkError: The server socket has failed: Address already in use", "rendezvous"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "a GPU failed"),
        ("was killed by SIGKILL", "host memory"),
    ],
)
def test_known_causes(line: str, word: str) -> None:
    assert word in (find_hint(["step 3/10  loss 1.0", line, "srun: done"]) or "")


def test_an_ordinary_exception_has_no_hint() -> None:
    assert find_hint(["ValueError: injected on purpose", "step 3/10  loss 1.0"]) is None


def test_the_rank_that_lost_its_peer_is_not_the_cause(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    attempt = Attempt(number=1, started=0.0, nodes=["n4", "n7"])
    lost = {"t": 1.0, "rank": 0, "type": "RuntimeError", "message": "Connection closed by peer [10.0.0.7]:4711"}
    write_json(paths.rank_error(1, 0), lost)
    write_text(paths.rank_log(1, 1, 3), "".join(f"line {n}\n" for n in range(30)) + "CUDA out of memory\n")
    first = explain(paths, attempt, 2, [RankExit(2.0, 3, -9), RankExit(2.1, 0, 1)])
    assert (first.rank, first.node, first.reason) == (3, "n7", "rank 3 on n7: was killed by SIGKILL")
    assert first.log[-1] == "CUDA out of memory"
    assert "GPU memory" in (first.hint or "")
    assert not first.is_error
