"""Losses and metrics of real runs against their formulas in float64, on what plain peft says of a checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from jobs.data import PreparedData
from jobs.order import RowOrder
from jobs.pairs import PairRows, prepare_pairs
from jobs.reward import measure_calibration_error
from jobs.tiny import make_tokenizer, write_tiny
from launcher.contract.spec import Data, Dpo, Reward, Train
from tests.jobs.runs import FLOAT32, Start, checkpoint, launch, make_pairs, values, write_rows, write_run

TRAIN = Train(
    max_steps=2,
    global_batch=8,
    micro_batch=4,
    learning_rate=1e-2,
    save_every_steps=1,
    eval_every_steps=1,
    gradient_checkpointing=False,
)
BETA, SMOOTHING, CENTER = 0.3, 0.1, 0.01
Tensor = torch.Tensor
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def robust(chosen: Tensor, rejected: Tensor, *_: Tensor) -> Tensor:
    """arXiv:2403.00409."""
    margin = BETA * (chosen - rejected)
    right, swapped = -logsigmoid(margin), -logsigmoid(-margin)
    return ((1 - SMOOTHING) * right - SMOOTHING * swapped) / (1 - 2 * SMOOTHING)


def exo(chosen: Tensor, rejected: Tensor, *_: Tensor) -> Tensor:
    """arXiv:2402.00856, eq. 16: the divergence of the model's preference from a smoothed one."""
    model = torch.softmax(BETA * torch.stack([chosen, rejected]), dim=0)
    told = torch.tensor([1 - SMOOTHING, SMOOTHING], dtype=model.dtype)[:, None]
    return (model * (model.log() - told.log())).sum(0)


LOSSES: dict[str, Loss] = {
    # arXiv:2305.18290, eq. 7; of log-ratios of the policy to the reference and the answers' tokens
    "sigmoid": lambda chosen, rejected, *_: -torch.sigmoid(BETA * (chosen - rejected)).log(),
    # arXiv:2309.06657
    "hinge": lambda chosen, rejected, *_: (1 - BETA * (chosen - rejected)).clamp(min=0),
    # arXiv:2310.12036, eq. 17, per token as its authors have it
    "ipo": lambda chosen, rejected, long, short: (chosen / long - rejected / short - 1 / (2 * BETA)) ** 2,
    "robust": robust,
    "exo_pair": exo,
    # arXiv:2405.00675, eq. 4.7 with a preference of 1
    "sppo_hard": lambda chosen, rejected, *_: (chosen - 0.5 / BETA) ** 2 + (rejected + 0.5 / BETA) ** 2,
    # arXiv:2408.06266, eq. 7 and 8
    "apo_zero": lambda chosen, rejected, *_: 1 - torch.sigmoid(BETA * chosen) + torch.sigmoid(BETA * rejected),
    "apo_down": lambda chosen, rejected, *_: (
        torch.sigmoid(BETA * chosen) + 1 - torch.sigmoid(BETA * (chosen - rejected))
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of each loss, with a checkpoint after the first."""
    folder = tmp_path_factory.mktemp("runs")
    data = Data(
        train=str(write_rows(folder / "pairs.jsonl", make_pairs(30))), eval=0.2, max_length=48, format="preference"
    )
    starts = [Start(write_run(folder / "reward", 1, model=FLOAT32, data=data, train=TRAIN, stage="reward"))]
    center = Reward(center=CENTER)
    root = write_run(folder / "centered", 1, model=FLOAT32, data=data, train=TRAIN, stage="reward", reward=center)
    starts.append(Start(root))
    for loss in LOSSES:
        dpo = Dpo(beta=BETA, loss_type=loss, label_smoothing=SMOOTHING if loss in ("robust", "exo_pair") else 0.0)  # type: ignore[arg-type]
        starts.append(Start(write_run(folder / loss, 1, model=FLOAT32, data=data, train=TRAIN, stage="dpo", dpo=dpo)))
    launch(1, starts, timeout=300)
    write_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(runs: Path) -> PreparedData[PairRows]:
    data = Data(train=str(runs / "pairs.jsonl"), eval=0.2, max_length=48, format="preference")
    return prepare_pairs(data, TRAIN.seed, make_tokenizer())


def second_batch(rows: PairRows) -> list[int]:
    return RowOrder(len(rows), TRAIN.seed, 16).indices(8, 16).tolist()


def load(runs: Path, name: str, loader: Any, **options: Any) -> Any:
    base = loader.from_pretrained(runs, dtype=torch.float64, **options)
    model = PeftModel.from_pretrained(base, runs / name / checkpoint(1), autocast_adapter_dtype=False)
    return model.double().eval()


def compare(runs: Path, name: str, rows: PairRows, indices: list[int]) -> tuple[Tensor, ...]:
    """Log-ratios of policy to reference, chosen and rejected, then the tokens of both answers: each (pairs,)."""
    model = load(runs, name, AutoModelForCausalLM)
    batch = rows.batch(indices, pad_token=0)
    mask = batch["completion_mask"][:, 1:].double()

    def say() -> Tensor:
        """Log-probability of each answer: the sum over its tokens."""
        with torch.no_grad():
            logs = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
        return (logs[:, :-1].gather(2, batch["input_ids"][:, 1:, None])[..., 0] * mask).sum(1)

    policy = say()
    with model.disable_adapter():
        ratios = policy - say()
    return (*ratios.chunk(2), *mask.sum(1).chunk(2))


@pytest.mark.parametrize("loss", LOSSES)
def test_dpo(runs: Path, prepared: PreparedData[PairRows], loss: str) -> None:
    assert prepared.eval is not None
    chosen, rejected, *lengths = compare(runs, loss, prepared.train, second_batch(prepared.train))
    expected = LOSSES[loss](chosen, rejected, *lengths).mean().item()
    assert values(runs / loss, "loss")[2] == pytest.approx(expected, rel=1e-5)
    assert values(runs / loss, "dpo/margin")[2] == pytest.approx(BETA * (chosen - rejected).mean().item(), abs=1e-4)
    assert values(runs / loss, "dpo/accuracy")[2] == (chosen > rejected).double().mean().item()
    assert values(runs / loss, "dpo/reward_chosen")[2] == pytest.approx(BETA * chosen.mean().item(), abs=1e-4)
    assert values(runs / loss, "dpo/reward_rejected")[2] == pytest.approx(BETA * rejected.mean().item(), abs=1e-4)
    chosen, rejected, *lengths = compare(runs, loss, prepared.eval, list(range(len(prepared.eval))))
    expected = LOSSES[loss](chosen, rejected, *lengths).mean().item()
    assert values(runs / loss, "eval_loss")[1] == pytest.approx(expected, rel=1e-5)
    assert values(runs / loss, "eval_margin")[1] == pytest.approx(BETA * (chosen - rejected).mean().item(), abs=1e-4)


def score(runs: Path, name: str, rows: PairRows, indices: list[int]) -> list[NDArray[numpy.float64]]:
    """The scores of the chosen and of the rejected side."""
    model = load(runs, name, AutoModelForSequenceClassification, num_labels=1)
    model.config.pad_token_id = make_tokenizer().pad_token_id
    batch = rows.batch(indices, model.config.pad_token_id)
    with torch.no_grad():
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    return [side.numpy() for side in scores.chunk(2)]


@pytest.mark.parametrize("name", ["reward", "centered"])
def test_reward(runs: Path, prepared: PreparedData[PairRows], name: str) -> None:
    """arXiv:2203.02155, eq. 1, and arXiv:2312.09244, eq. 2."""
    assert prepared.eval is not None

    def loss(chosen: NDArray[numpy.float64], rejected: NDArray[numpy.float64]) -> float:
        center = CENTER * ((chosen + rejected) ** 2).mean() if name == "centered" else 0.0
        return float(numpy.log1p(numpy.exp(rejected - chosen)).mean() + center)

    chosen, rejected = score(runs, name, prepared.train, second_batch(prepared.train))
    assert values(runs / name, "loss")[2] == pytest.approx(loss(chosen, rejected), rel=1e-4)
    assert values(runs / name, "reward/margin")[2] == pytest.approx((chosen - rejected).mean(), rel=1e-5)
    assert values(runs / name, "reward/accuracy")[2] == (chosen > rejected).mean()
    chosen, rejected = score(runs, name, prepared.eval, list(range(len(prepared.eval))))
    assert values(runs / name, "eval_loss")[1] == pytest.approx(loss(chosen, rejected), rel=1e-4)
    assert values(runs / name, "eval_margin")[1] == pytest.approx((chosen - rejected).mean(), rel=1e-5)
    assert values(runs / name, "eval_accuracy")[1] == (chosen > rejected).mean()
    error = measure_calibration_error(chosen - rejected)
    assert values(runs / name, "eval_calibration_error")[1] == pytest.approx(error, rel=1e-4)


def test_the_calibration_error_is_the_gap_between_what_is_said_and_what_is_right() -> None:
    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    sure = numpy.array([logit(0.8)] * 4 + [-logit(0.8)])
    assert measure_calibration_error(sure) == pytest.approx(0)
    assert measure_calibration_error(-sure) == pytest.approx(0.6)
    assert measure_calibration_error(numpy.zeros(3)) == 0
    assert measure_calibration_error(numpy.array([40.0, -40.0])) == pytest.approx(0.5)
    two_bins = numpy.array([logit(0.7), logit(0.9), logit(0.9)])
    assert measure_calibration_error(two_bins) == pytest.approx((0.3 + 2 * 0.1) / 3)


def test_the_runs_differ(runs: Path) -> None:
    assert len({round(values(runs / name, "eval_loss")[2], 6) for name in ("reward", "centered", *LOSSES)}) == 10
