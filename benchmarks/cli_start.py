"""Measures how fast the command line starts: ratios to importing typer and rich, paired in one run.

    python benchmarks/cli_start.py [PAIRS]

Prints median ratios with the noise floor (the baseline against itself). Aims: --help 1.5, plan 3.0.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BASELINE = [sys.executable, "-c", "import typer, rich"]
SPEC = """\
name: bench
stage: sft
model: {base: builtin:tiny}
data: {train: rows.jsonl, format: messages}
train: {max_steps: 10, global_batch: 16384}
resources: {nodes: 1024, gpus_per_node: 8}
"""
PROFILE = "{scheduler: slurm, accelerator: cuda, gpus_per_node: 8, cpus_per_node: 96, partition: gpu}\n"


def seconds(command: list[str], folder: Path) -> float:
    """Wall time of one run of ``command``, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def main(pairs: int) -> None:
    launcher = [sys.executable, "-m", "launcher"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text('{"messages": []}\n')
        (folder / "spec.yaml").write_text(SPEC)
        (folder / "large.yaml").write_text(PROFILE)
        commands = {
            "baseline (noise floor)": BASELINE,
            "tuneyard --help": [*launcher, "--help"],
            "tuneyard plan, 1,024 nodes x 8 GPUs": [*launcher, "plan", "spec.yaml", "--cluster", "large.yaml"],
        }
        for command in commands.values():
            seconds(command, folder)  # byte code and file cache
        for label, command in commands.items():
            samples = [(seconds(command, folder), seconds(BASELINE, folder)) for _ in range(pairs)]
            ratios = [ours / base for ours, base in samples]
            ours = statistics.median(first for first, _ in samples)
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            print(f"{label:<38} {ours:.3f} s  ratio {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
