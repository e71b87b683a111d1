"""Compares the four strategies on one spec: loss by step, what each rank holds, time per step and per checkpoint.

    tuneyard devcluster up --nodes 4
    python benchmarks/strategies.py SPEC --cluster devcluster [a.b=value ...]

Every strategy trains the same rows in the same order, so the losses are one run's, seen four times; what remains is
how each one rounds. Elements and bytes are those of the strategy_check and memory events of the ledger: what one rank
holds between steps, and all live tensors by storage after the first step. Times are medians; they mean something on a
machine that does nothing else.
"""

import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher.contract.ledger import Row, events, merge_metrics, read_run
from launcher.contract.paths import RunPaths

STRATEGIES = ("ddp", "fsdp", "zero2", "zero3")
MIB = 2**20


def submit(strategy: str, arguments: list[str]) -> list[Row]:
    """The ledger of one finished run."""
    command = [sys.executable, "-m", "launcher", "submit", *arguments, f"parallel.strategy={strategy}"]
    done = subprocess.run([*command, "--wait", "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{strategy}: exit code {done.returncode}")
    return read_run(RunPaths(Path(json.loads(done.stdout.splitlines()[-1])["run_dir"])))


def describe(rows: list[Row]) -> dict[str, Any]:
    check, memory = events(rows, "strategy_check")[0], events(rows, "memory")[0]
    metrics = [row for row in merge_metrics(rows) if "loss" in row]
    # Tokens of a step over its rate: without evaluations and saves between the steps.
    tokens = [after["tokens"] - before["tokens"] for before, after in itertools.pairwise(metrics)]
    seconds = [count / row["tokens_per_s"] for count, row in zip(tokens, metrics[1:], strict=True)]
    saves = events(rows, "checkpoint")
    (live,) = memory["live_bytes"].values()
    return {
        "loss": {row["step"]: row["loss"] for row in metrics},
        "elements per rank": f"{check['params_local_max']:,} of {check['params_total']:,}",
        "optimizer elements": f"{check['optimizer_local']:,} of {check['trainable_params']:,}",
        "weights, MiB": f"{check['bytes_local'] / MIB:.1f}",
        "live tensors, MiB": f"{live['min'] / MIB:.1f} to {live['max'] / MIB:.1f}",
        "s per step": f"{statistics.median(seconds):.2f}",
        "stall per checkpoint, s": f"{statistics.median(row['stall_seconds'] for row in saves):.2f}",
    }


def table(rows: list[list[str]]) -> str:
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *rest])


def main(arguments: list[str]) -> None:
    found = {strategy: describe(submit(strategy, arguments)) for strategy in STRATEGIES}
    losses = {strategy: value.pop("loss") for strategy, value in found.items()}
    steps = [[str(step), *(f"{losses[name][step]:.4f}" for name in STRATEGIES)] for step in losses["ddp"]]
    print(table([["step", *STRATEGIES], *steps]))
    worst = {name: max(abs(losses[name][step] / losses["ddp"][step] - 1) for step in losses["ddp"]) for name in losses}
    print("largest difference from ddp: " + ", ".join(f"{name} {worst[name]:.2%}" for name in STRATEGIES[1:]) + "\n")
    rows = [[key, *(found[name][key] for name in STRATEGIES)] for key in found["ddp"]]
    print(table([["", *STRATEGIES], *rows]))


if __name__ == "__main__":
    main(sys.argv[1:])
