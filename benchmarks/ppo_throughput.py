"""Measures the ppo stage against TRL 1.12.0's PPO: episodes per second and peak memory. Aims: twice, and half.

    python -m venv old && old/bin/pip install torch==2.13.0 trl==1.12.0 peft==0.21.2
    python benchmarks/ppo_throughput.py old/bin/python [ROUNDS]      # 3

Both train SmolLM2-135M-Instruct in float32 with LoRA r=8 from the same prompts: rollouts of 16 responses of at most 32
tokens, two epochs in minibatches of 8, micro batches of 4, the same number of threads, no gradient checkpointing. The
reward of both is a classifier on the base; ours is a reward run's adapter. TRL trains all weights of its value model,
for it knows no other way; our critic has an adapter of its own, or is a head on the policy's trunk: both are measured.
Times are those between the ends of the first rollout's updates and the last's, memory is the peak resident size of the
process that trains. Each round runs all three, in turned order.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from launcher.contract.ledger import merge_metrics, read_rows
from launcher.contract.paths import RunPaths

ROOT = Path(__file__).parent.parent
ROLLOUTS, BATCH, MINIBATCH, MICRO_BATCH, EPOCHS, TOKENS = 3, 16, 8, 4, 2, 32
STEPS = ROLLOUTS * EPOCHS * BATCH // MINIBATCH
MODEL = "{base: ./model, quantization: none, dtype: float32, adapter: {r: 8, alpha: 16, dropout: 0.0}}"
REWARD = f"""\
name: reward
stage: reward
model: {MODEL}
data: {{train: {ROOT}/examples/data/triage_pairs.jsonl, format: preference, max_length: 128, eval: null}}
train: {{max_steps: 1, micro_batch: 4, global_batch: 4, save_every_steps: null}}
resources: {{gpus_per_node: 1}}
tracking: {{wandb: disabled}}
"""
PPO = f"""\
name: ppo
stage: ppo
model: {MODEL}
data: {{train: prompts.jsonl, format: prompt, max_length: 128, eval: null}}
train: {{max_steps: {STEPS}, micro_batch: {MICRO_BATCH}, global_batch: {MINIBATCH}, learning_rate: 1e-5,
  gradient_checkpointing: false, save_every_steps: null}}
ppo: {{rollout_batch: {BATCH}, epochs: {EPOCHS}, max_new_tokens: {TOKENS}, generation_batch: {BATCH}}}
resources: {{gpus_per_node: 1}}
tracking: {{wandb: disabled}}
"""


def submit(folder: Path, spec: str, *overrides: str) -> RunPaths:
    command = [sys.executable, "-m", "launcher", "submit", spec, *overrides, "--cluster", "local", "--wait", "--json"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return RunPaths(Path(json.loads(done.stdout.splitlines()[-1])["run_dir"]))


def run_ours(folder: Path, reward: Path, critic: str) -> dict[str, float]:
    run = submit(folder, "ppo.yaml", f"ppo.reward={reward}", f"ppo.critic={critic}")
    rows = merge_metrics(read_rows(run.ledger(1)))
    ends = [row["t"] for row in rows if row["step"] % (STEPS // ROLLOUTS) == 0]
    lengths = [row["ppo/response_length"] for row in rows if "ppo/response_length" in row]
    return summarize(ends, rows[-1]["memory_gib"]) | {"tokens": statistics.mean(lengths)}


def run_theirs(folder: Path, python: str, threads: str) -> dict[str, float]:
    numbers = [ROLLOUTS, BATCH, BATCH // MINIBATCH, MICRO_BATCH, EPOCHS, TOKENS]
    script = [python, str(ROOT / "benchmarks/plain_ppo.py"), "model", "prompts.jsonl", "plain.json", *map(str, numbers)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(script, cwd=folder, env={**env, "OMP_NUM_THREADS": threads}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    noted: dict[str, Any] = json.loads((folder / "plain.json").read_text(encoding="utf-8"))
    return summarize(noted["times"], noted["peak_gib"])


def summarize(ends: list[float], peak_gib: float) -> dict[str, float]:
    assert len(ends) == ROLLOUTS
    return {"episodes_per_s": (ROLLOUTS - 1) * BATCH / (ends[-1] - ends[0]), "peak_gib": peak_gib}


def main(python: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        model = subprocess.check_output([sys.executable, str(ROOT / "examples/smollm2.py")], text=True).strip()
        (folder / "model").symlink_to(model)
        lines = (ROOT / "examples/data/triage.jsonl").read_text(encoding="utf-8").splitlines()[: ROLLOUTS * BATCH]
        prompts = [{"prompt": json.loads(line)["messages"][0]["content"]} for line in lines]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
        (folder / "reward.yaml").write_text(REWARD, encoding="utf-8")
        (folder / "ppo.yaml").write_text(PPO, encoding="utf-8")
        reward = submit(folder, "reward.yaml").final
        threads = str(len(os.sched_getaffinity(0)))
        found: list[dict[str, dict[str, float]]] = []
        for number in range(rounds):
            sides = ["own", "shared", "TRL"]
            order = sides[number % 3 :] + sides[: number % 3]
            found.append(
                {
                    side: run_theirs(folder, python, threads) if side == "TRL" else run_ours(folder, reward, side)
                    for side in order
                }
            )
            print(f"round {number + 1}: {found[-1]}", flush=True)
        for side in ("own", "shared"):
            for key, label in (("episodes_per_s", "episodes/s"), ("peak_gib", "peak memory")):
                ratios = [told[side][key] / told["TRL"][key] for told in found]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                print(f"critic {side}, {label}: ours / TRL {spread}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
