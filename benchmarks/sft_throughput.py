"""Measures the SFT job's tokens per second on CPU against a plain TRL script, paired in one run. Aim: a ratio of 0.98.

    python benchmarks/sft_throughput.py [ROUNDS [RANKS [ROWS]]]     # 8 and 1; at least 2 rounds, at most 16

ROWS is a JSON list of instruction, input and output (alpaca); without it examples/data/triage.jsonl is taken.

The job is what a user starts, ``tuneyard submit --cluster local --wait``, with its supervisor beside it; the other side
is benchmarks/plain_sft.py. Both train SmolLM2-135M-Instruct (NF4, bfloat16, LoRA in float32) on the same rows in the
same order, in the same batches, with as many ranks and threads. Only training counts, by rank 0's clock from the end of
step 2 to the end of the last (the ledger's rows, the plain script's callback); the tokens of all logged steps and the
loss of step 1 must agree.

A shared machine is a tenth slower in one minute than in the next, so the two sides of a pair run at once, each on its
half of the cores, and change halves in the next round. A round is one pair of job and plain and one of plain and plain,
which is the noise floor, measured as job to plain is.
"""

import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.order import RowOrder
from launcher.contract.ledger import merge_metrics, read_rows
from launcher.contract.paths import RunPaths

ROOT = Path(__file__).parent.parent
STEPS, MICRO_BATCH, GLOBAL_BATCH, MAX_LENGTH, SEED = 14, 1, 2, 128, 42
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


def run_job(folder: Path, cores: str, ranks: int) -> Leg:
    command = [sys.executable, "-m", "launcher", "submit", "spec.yaml", f"resources.gpus_per_node={ranks}"]
    command += ["--cluster", "local", "--wait", "--json"]
    run = json.loads(call(command, folder, cores).splitlines()[-1])
    rows = merge_metrics(read_rows(RunPaths(Path(run["run_dir"])).ledger(1)))
    return Leg({row["step"]: row["t"] for row in rows}, {row["step"]: row["tokens"] for row in rows}, rows[0]["loss"])


def run_plain(folder: Path, threads: str, cores: str, ranks: int) -> Leg:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    record = folder / f"plain-{cores}.json"
    script = [str(ROOT / "benchmarks/plain_sft.py"), str(folder / "model"), "ordered.jsonl", str(record)]
    numbers = [str(STEPS), str(MICRO_BATCH), str(GLOBAL_BATCH // (MICRO_BATCH * ranks))]
    call([sys.executable, *launcher, *script, *numbers], folder, cores, OMP_NUM_THREADS=threads)
    noted = json.loads(record.read_text(encoding="utf-8"))
    logs = noted["logs"]
    return Leg(
        {int(step): time for step, time in noted["times"].items()},
        {log["step"]: int(log["num_tokens"]) for log in logs if "num_tokens" in log},
        logs[0]["loss"],
    )


def call(command: list[str], folder: Path, cores: str, **env: str) -> str:
    """What ``command`` prints when it runs on ``cores`` (as taskset reads them); shows its complaint where it fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", **env}
    pinned = ["taskset", "--cpu-list", cores, *command]
    done = subprocess.run(pinned, cwd=folder, env=env, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def write_inputs(folder: Path, alpaca: Path | None) -> None:
    """``model``; ``rows.jsonl`` for the job, short rows for one epoch; ``ordered.jsonl``, as the job will take them."""
    from transformers import AutoTokenizer

    model = subprocess.check_output([sys.executable, str(ROOT / "examples/smollm2.py")], text=True).strip()
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
    every = sorted(os.sched_getaffinity(0))
    half = len(every) // 2
    halves = [",".join(map(str, every[:half])), ",".join(map(str, every[half : 2 * half]))]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:  # the last supervisor may still write
        folder = Path(name)
        write_inputs(folder, alpaca)
        threads = show_setup(folder, halves[0], ranks)
        job = functools.partial(run_job, folder, ranks=ranks)
        plain = functools.partial(run_plain, folder, threads, ranks=ranks)
        ratios, noise = [], []
        tokens: dict[int, int] = {}
        for number in range(rounds):
            cores = halves[number % 2 :] + halves[: number % 2]
            for label, side, kept in (("job", job, ratios), ("plain", plain, noise)):
                ours, other = run_at_once(side, plain, cores)
                check_same_work(ours, other)
                if label == "job" and number == 0:
                    tokens = ours.tokens  # of each step, where the script logs every tenth
                    print(f"tokens per step {', '.join(str(tokens[n] - tokens.get(n - 1, 0)) for n in tokens)}")
                    print(f"loss of step 1: job {ours.first_loss:.5f}, plain {other.first_loss:.5f}")
                rates = measure_rate(ours, tokens), measure_rate(other, tokens)
                kept.append(rates[0] / rates[1])
                print(f"round {number + 1}: tokens/s {label} {rates[0]:.1f}, plain {rates[1]:.1f}; ", end="")
                print(f"ratio {kept[-1]:.4f}", flush=True)
    print(describe("job / plain", ratios))
    print(describe("plain / plain (noise)", noise))


def run_at_once(side: Callable[[str], Leg], other: Callable[[str], Leg], cores: list[str]) -> tuple[Leg, Leg]:
    with ThreadPoolExecutor(2) as pool:
        legs = pool.submit(side, cores=cores[0]), pool.submit(other, cores=cores[1])
        return legs[0].result(), legs[1].result()


def show_setup(folder: Path, cores: str, ranks: int) -> str:
    """Print versions and the machine; returns the threads that the plan gives to each rank."""
    command = [sys.executable, "-m", "launcher", "plan", "spec.yaml", f"resources.gpus_per_node={ranks}"]
    plan = json.loads(call([*command, "--cluster", "local", "--json"], folder, cores))
    threads = str(plan["topology"]["cpus_per_rank"] or 1)
    packages = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
    print(", ".join(f"{package} {version(package)}" for package in packages))
    print(f"{plan['cluster']['accelerator']}, ranks x threads: {ranks} x {threads} on each half", flush=True)
    return threads


if __name__ == "__main__":
    rounds, ranks, rows = (*sys.argv[1:4], *("8", "1", "")[len(sys.argv) - 1 :])
    main(int(rounds), int(ranks), Path(rows).absolute() if rows else None)
