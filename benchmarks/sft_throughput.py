"""Measures the SFT job's tokens per second against a plain TRL script, paired in one run. Aim: a ratio of 0.98.

    python benchmarks/sft_throughput.py [ROUNDS [RANKS [ROWS]]]     # 8 and 1; at least 2 rounds, at most 16

ROWS is a JSON list of instruction, input and output (alpaca); without it examples/data/triage.jsonl is taken.

The job is what a user starts, ``tuneyard submit --cluster local --wait``, with its supervisor beside it; the other side
is benchmarks/plain_sft.py. Both train SmolLM2-135M-Instruct (NF4, bfloat16, LoRA in float32) on the same rows in the
same order, in the same batches, with as many ranks and threads. Only training counts, by rank 0's clock from the end of
step 2 to the end of the last (the ledger's rows, the plain script's callback); the tokens of all logged steps and the
loss of step 1 must agree. Rounds run job, plain, plain again, and the next one in reverse: plain again to plain is
the noise floor, measured as job to plain is.
"""

import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.order import RowOrder
from launcher.contract.ledger import merge_metrics, read_rows
from launcher.contract.paths import RunPaths

ROOT = Path(__file__).parent.parent
STEPS, MICRO_BATCH, GLOBAL_BATCH, MAX_LENGTH, SEED = 8, 1, 2, 128, 42
SKIPPED_STEPS = 2
SPEC = f"""\
name: throughput
stage: sft
model: {{base: MODEL, quantization: nf4, dtype: bfloat16}}
data: {{train: rows.jsonl, format: messages, max_length: {MAX_LENGTH}, eval: null}}
train: {{max_steps: {STEPS}, micro_batch: {MICRO_BATCH}, global_batch: {GLOBAL_BATCH}, warmup_steps: 1, seed: {SEED},
  save_every_steps: null}}
resources: {{nodes: 1, time: 30m}}
tracking: {{wandb: disabled}}
"""
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
"""Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Leg:
    """One run: when steps ended (seconds since the epoch), tokens without padding up to steps, the loss of step 1."""

    times: dict[int, float]
    tokens: dict[int, int]
    first_loss: float


def run_job(folder: Path, env: dict[str, str], ranks: int) -> Leg:
    command = [sys.executable, "-m", "launcher", "submit", "spec.yaml", f"resources.gpus_per_node={ranks}"]
    command += ["--cluster", "local", "--wait", "--json"]
    run = json.loads(call(command, folder, env).splitlines()[-1])
    rows = merge_metrics(read_rows(RunPaths(Path(run["run_dir"])).ledger(1)))
    return Leg({row["step"]: row["t"] for row in rows}, {row["step"]: row["tokens"] for row in rows}, rows[0]["loss"])


def run_plain(folder: Path, env: dict[str, str], ranks: int) -> Leg:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    script = [str(ROOT / "benchmarks/plain_sft.py"), str(folder / "model"), "ordered.jsonl", "plain.json"]
    numbers = [str(STEPS), str(MICRO_BATCH), str(GLOBAL_BATCH // (MICRO_BATCH * ranks))]
    call([sys.executable, *launcher, *script, *numbers], folder, env)
    record = json.loads((folder / "plain.json").read_text(encoding="utf-8"))
    logs = record["logs"]
    return Leg(
        {int(step): time for step, time in record["times"].items()},
        {log["step"]: int(log["num_tokens"]) for log in logs if "num_tokens" in log},
        logs[0]["loss"],
    )


def call(command: list[str], folder: Path, env: dict[str, str]) -> str:
    """What ``command`` prints; what it complains of is shown where it fails."""
    done = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def write_inputs(folder: Path, alpaca: Path | None) -> None:
    """``model``; ``rows.jsonl`` for the job, short rows for one epoch; ``ordered.jsonl``, as the job will take them."""
    from transformers import AutoTokenizer

    model = call([sys.executable, str(ROOT / "examples/smollm2.py")], ROOT, dict(os.environ)).strip()
    (folder / "model").symlink_to(model)
    (folder / "spec.yaml").write_text(SPEC.replace("MODEL", "./model"), encoding="utf-8")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    rows = []
    for turns in read_conversations(alpaca):
        # Nothing is cut, so that both sides see whole rows.
        if len(tokenizer.apply_chat_template(turns)["input_ids"]) <= MAX_LENGTH:
            rows.append(json.dumps({"messages": turns}))
    rows = rows[: STEPS * GLOBAL_BATCH]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    order = RowOrder(len(rows), SEED, STEPS * GLOBAL_BATCH)
    (folder / "ordered.jsonl").write_text("\n".join(rows[index] for index in order) + "\n", encoding="utf-8")


def read_conversations(alpaca: Path | None) -> list[list[dict[str, str]]]:
    """A question and its answer each."""
    if alpaca is None:
        text = (ROOT / "examples/data/triage.jsonl").read_text(encoding="utf-8")
        return [json.loads(line)["messages"] for line in text.splitlines()]
    rows = json.loads(alpaca.read_text(encoding="utf-8"))
    pairs = [(f"{row['instruction']}\n{row['input']}".strip(), row["output"]) for row in rows]
    return [[{"role": "user", "content": ask}, {"role": "assistant", "content": say}] for ask, say in pairs]


def measure_rate(leg: Leg, tokens: dict[int, int]) -> float:
    """Tokens per second of the steps that count."""
    return (tokens[STEPS] - tokens[SKIPPED_STEPS]) / (leg.times[STEPS] - leg.times[SKIPPED_STEPS])


def check_same_work(job: Leg, plain: Leg) -> None:
    """Stop where the two sides did not compute the same thing, for then their times say nothing."""
    other = {step: (tokens, job.tokens[step]) for step, tokens in plain.tokens.items() if tokens != job.tokens[step]}
    if other or STEPS not in plain.tokens:
        raise SystemExit(f"tokens differ (step: plain, job): {other}")
    if not math.isclose(job.first_loss, plain.first_loss, rel_tol=1e-3):
        raise SystemExit(f"the loss of step 1 differs: job {job.first_loss}, plain {plain.first_loss}")


def describe(label: str, ratios: list[float]) -> str:
    """Geometric mean of ``ratios`` and its 95 % confidence interval (Student's t on the logarithms)."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.mean(logs)
    half = T_QUANTILES[len(logs) - 2] * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{label:<28} {math.exp(mean):.4f}  95 % {math.exp(mean - half):.4f}-{math.exp(mean + half):.4f}"


def main(rounds: int, ranks: int, alpaca: Path | None) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:  # the last supervisor may still write
        folder = Path(name)
        write_inputs(folder, alpaca)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}
        threads = show_setup(folder, env, ranks)
        plain = functools.partial(run_plain, folder, {**env, "OMP_NUM_THREADS": threads}, ranks)
        sides = {"job": functools.partial(run_job, folder, env, ranks), "plain": plain, "again": plain}
        ratios, noise = [], []
        for number in range(rounds):
            order = reversed(sides) if number % 2 else sides
            legs = {side: sides[side]() for side in order}
            tokens = legs["job"].tokens
            check_same_work(legs["job"], legs["plain"])
            check_same_work(legs["job"], legs["again"])
            if number == 0:
                print(f"tokens per step {', '.join(str(tokens[n] - tokens.get(n - 1, 0)) for n in tokens)}")
                print(f"loss of step 1: job {legs['job'].first_loss:.5f}, plain {legs['plain'].first_loss:.5f}")
            rates = {side: measure_rate(legs[side], tokens) for side in sides}
            ratios.append(rates["job"] / rates["plain"])
            noise.append(rates["again"] / rates["plain"])
            shown = ", ".join(f"{side} {rate:.1f}" for side, rate in rates.items())
            print(f"round {number + 1}: tokens/s {shown}; ratio {ratios[-1]:.4f}, noise {noise[-1]:.4f}", flush=True)
    print(describe("job / plain", ratios))
    print(describe("plain again / plain (noise)", noise))


def show_setup(folder: Path, env: dict[str, str], ranks: int) -> str:
    """Print versions and the machine; returns the threads that the plan gives to each rank."""
    command = [sys.executable, "-m", "launcher", "plan", "spec.yaml", f"resources.gpus_per_node={ranks}"]
    plan = json.loads(call([*command, "--cluster", "local", "--json"], folder, env))
    threads = str(plan["topology"]["cpus_per_rank"] or 1)
    packages = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
    print(", ".join(f"{package} {version(package)}" for package in packages))
    print(f"{plan['cluster']['accelerator']}, ranks x threads: {ranks} x {threads}", flush=True)
    return threads


if __name__ == "__main__":
    rounds, ranks, rows = (*sys.argv[1:4], *("8", "1", "")[len(sys.argv) - 1 :])
    main(int(rounds), int(ranks), Path(rows).absolute() if rows else None)
