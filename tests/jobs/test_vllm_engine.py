"""Real PPO with responses by vLLM: what it answers, on how many ranks, and when it goes on."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import JobError
from jobs.tiny import write_tiny
from jobs.vllm_engine import check_installed
from launcher.contract.ledger import events
from launcher.contract.spec import Adapter, Data, Model, Parallel, Ppo, Train
from tests.jobs.runs import ROOT, Start, checkpoint, launch, ledger, values, write_rows, write_run

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed; docs/ppo.md says what ran with it")
TRAIN = Train(max_steps=6, global_batch=8, learning_rate=1e-3, save_every_steps=3, eval_every_steps=3)
# A rollout is four steps: the checkpoint of step 3 stands in the middle of one.
PPO = Ppo(reward="builtin:length", max_new_tokens=10, rollout_batch=16, epochs=2, kl_coef=0.1, engine="vllm")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return Model(base=str(folder), quantization="none", dtype="float32", adapter=Adapter(r=4))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    rows = [{"prompt": f"Say {'a' * (number % 7)} {number}."} for number in range(90)]
    data = Data(train=str(write_rows(folder / "rows.jsonl", rows)), eval=0.1, max_length=64, format="prompt")
    options: Any = {"model": model, "data": data, "train": TRAIN, "stage": "ppo", "ppo": PPO}
    launch(1, [Start(write_run(folder / "one", 1, **options))], timeout=600)
    two = write_run(folder / "two", 2, parallel=Parallel(strategy="zero3"), **options)
    launch(2, [Start(two), Start(two, 2, checkpoint(3))], timeout=600)
    return folder


def write_model(folder: Path) -> None:
    """builtin:tiny with the smallest heads that vLLM's CPU backend takes: 32 numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    write_tiny(folder)
    config = LlamaConfig.from_pretrained(folder, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    set_seed(0)
    model = LlamaForCausalLM(config)
    # Responses whose likeliest token is clear, beyond what float32 rounds.
    model.lm_head.weight.data *= 20
    model.save_pretrained(folder)


def answers(root: Path, attempt: int = 1) -> list[Any]:
    """Sampled responses of rollouts and evaluations, in their order."""
    return [row["samples"] for kind in ("rollout", "answers") for row in events(ledger(root, attempt), kind)]


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_where_there_is_no_vllm_the_run_says_so() -> None:
    with pytest.raises(JobError, match=r"^ppo\.engine: vllm is not installed .* set ppo\.engine: builtin$"):
        check_installed()


@needs_vllm
@pytest.mark.ranks
@pytest.mark.timeout(600)
def test_it_answers_what_the_policy_as_it_is_now_answers(model: Model) -> None:
    """In a process of its own: vLLM leaves its traces in torch."""
    command = [sys.executable, "-m", "tests.jobs.two_engines", model.base]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    builtin, vllm = json.loads(done.stdout.splitlines()[-1])
    assert vllm == builtin
    first, second = builtin
    assert first != second
    assert len({len(response) for response in first + second}) > 1  # some came to an end


@needs_vllm
@pytest.mark.ranks
@pytest.mark.timeout(1500)
def test_responses_depend_neither_on_the_ranks_nor_on_an_interruption(runs: Path) -> None:
    assert answers(runs / "two") == answers(runs / "one")
    assert values(runs / "two", "ppo/ratio")[1] == values(runs / "two", "ppo/ratio")[5] == 1
    for metric in ("loss", "grad_norm", "ppo/score", "ppo/kl", "eval_score"):
        straight, resumed = values(runs / "two", metric), values(runs / "two", metric, attempt=2)
        assert resumed == {step: value for step, value in straight.items() if step > 3}, metric
