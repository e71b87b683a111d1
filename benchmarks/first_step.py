"""Measures submit to first step on the development cluster, against a hand-written sbatch with srun torchrun.

    tuneyard devcluster up --nodes 4
    python benchmarks/first_step.py [PAIRS]

Both run the same job (builtin:tiny, 2 nodes x 2 ranks) with the same job code; the pairs alternate. The time runs from
the start of `tuneyard submit` (or of `sbatch`) to the row of step 1 in the ledger. Aim: a ratio of at most 1.2.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher.contract.ledger import merge_metrics, read_rows
from launcher.contract.paths import RunPaths

ROOT = Path(__file__).parent.parent
SPEC = f"""\
name: first-step
stage: sft
model: {{base: builtin:tiny, quantization: none, dtype: float32}}
data: {{train: {ROOT}/examples/data/triage.jsonl, format: messages, max_length: 192, eval: null}}
train: {{max_steps: 2, micro_batch: 2, global_batch: 8, save_every_steps: null}}
resources: {{nodes: 2, gpus_per_node: 2, time: 10m}}
tracking: {{wandb: disabled}}
"""
SBATCH = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --gpus-per-node=2 --time=10 --output={run}/by-hand.log
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)
cd {root}
srun --kill-on-bad-exit=1 {python} -m torch.distributed.run --nnodes 2 --nproc-per-node 2 \\
    --rdzv-backend c10d --rdzv-endpoint $MASTER_ADDR:29517 --rdzv-id $SLURM_JOB_ID benchmarks/first_step.py --rank {run}
"""


def rank(run: Path) -> None:
    """One rank of the hand-written job: torchrun's numbers, the same stage."""
    import socket

    from jobs import sft
    from jobs.context import RankContext
    from launcher.contract.plan import Plan

    paths = RunPaths(run)
    numbers = {name: int(os.environ[name.upper()]) for name in ("rank", "local_rank", "world_size")}
    sft.main(RankContext(paths=paths, plan=Plan.load(paths.plan), attempt=1, node=socket.gethostname(), **numbers))


def run_tuneyard(folder: Path, env: dict[str, str]) -> float:
    start = time.time()
    command = [sys.executable, "-m", "launcher", "submit", "spec.yaml", "--cluster", "devcluster", "--wait", "--json"]
    done = subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True)
    return first_step(Path(json.loads(done.stdout)["run_dir"])) - start


def run_by_hand(folder: Path, env: dict[str, str]) -> float:
    named = ["spec.yaml", "name=by-hand", "--cluster", "devcluster"]  # a run directory of its own
    command = [sys.executable, "-m", "launcher", "plan", *named, "--json"]
    plan = json.loads(subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True).stdout)
    run = Path(plan["runs"]) / plan["run_id"]
    script = folder / "job.sbatch"
    script.write_text(SBATCH.format(run=run, root=ROOT, python=sys.executable))
    start = time.time()
    subprocess.run(["sbatch", "--wait", str(script)], env=env, check=True, capture_output=True)
    return first_step(run) - start


def first_step(run: Path) -> float:
    """Seconds since the epoch of the first step's row."""
    rows = merge_metrics(read_rows(RunPaths(run).ledger(1)))
    return next(row["t"] for row in rows if row["step"] == 1)


def main(pairs: int) -> None:
    conf = os.environ.get("TUNEYARD_DEVCLUSTER_DIR", "/var/lib/tuneyard-devcluster") + "/slurm.conf"
    env = {**os.environ, "SLURM_CONF": conf, "PYTHONPATH": str(ROOT)}
    ours, theirs = [], []
    for number in range(pairs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "spec.yaml").write_text(SPEC)
            order = [(run_by_hand, theirs), (run_tuneyard, ours)]
            for measure, times in order if number % 2 else reversed(order):
                times.append(measure(folder, env))
        print(f"pair {number + 1}: tuneyard {ours[-1]:.1f} s, by hand {theirs[-1]:.1f} s", flush=True)
    ratios = [first / second for first, second in zip(ours, theirs, strict=True)]
    print(f"ratio median {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
