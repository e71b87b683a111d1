"""What reward and dpo add alike to a TRL trainer: batches of pairs, and what is measured of both sides."""

from typing import TYPE_CHECKING, Any

import numpy
from numpy.typing import NDArray

from .evaluation import measure_pairs
from .pairs import PairRows
from .trainer import Metrics, RunTrainer

if TYPE_CHECKING:
    import torch

Floats = NDArray[numpy.float64]


class PairTrainer(RunTrainer):
    """A mixin: ``class Stage(PairTrainer, trl.RewardTrainer)``.

    Both sides of a pair get a reward; which one is preferred, the sign of their difference says, the margin. A stage
    gives :meth:`compute_rewards` and :meth:`summarize`.

    Not TRL's own metrics: 1.16 gathers them with ``gather_for_metrics``, which drops some at the end of a data loader
    that, as ours, is longer than its rows.
    """

    def __init__(self, *, rows: PairRows, **options: Any) -> None:
        """``rows`` are trained on; ``options`` are TRL's."""
        self.rows = rows
        self._step_rewards: list[list[float]] = []
        super().__init__(data_collator=self.collate, **options)  # type: ignore[call-arg]

    def compute_rewards(self, model: Any, inputs: dict[str, Any]) -> "tuple[torch.Tensor, torch.Tensor]":
        """The mean loss of a batch, and the rewards of its pairs, chosen and rejected: shape (pairs, 2), detached."""
        raise NotImplementedError

    def summarize(self, chosen: Floats, rejected: Floats) -> Metrics:
        """What is said of the rewards of many pairs, each of shape (pairs,)."""
        raise NotImplementedError

    def collate(self, examples: list[dict[str, int]]) -> dict[str, Any]:
        """A batch of the rows that ``examples`` name."""
        trainer: Any = self
        return self.rows.batch([example["row"] for example in examples], trainer.processing_class.pad_token_id)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> "torch.Tensor":
        loss, rewards = self.compute_rewards(model, inputs)
        self._step_rewards += rewards.double().tolist()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what :meth:`summarize` says of the step's pairs, of all ranks."""
        if "loss" in logs:
            from accelerate.utils import gather_object

            chosen, rejected = numpy.array(gather_object(self._step_rewards)).T
            stage = self.progress.context.plan.spec.stage
            told = {f"{stage}/{name}": value for name, value in self.summarize(chosen, rejected).items()}
            logs |= {name: told[name] for name in self.METRICS}
            self._step_rewards = []
        super().log(logs, start_time)

    def measure(self) -> Metrics:
        import torch

        trainer: Any = self

        def measure(inputs: dict[str, Any]) -> torch.Tensor:
            loss, rewards = self.compute_rewards(trainer.model_wrapped, inputs)
            # A mean over equal shares is a mean over all: the batch's loss stands for each of its pairs.
            return torch.cat([loss.detach().expand(len(rewards), 1).to(rewards.dtype), rewards], dim=1)

        loss, chosen, rejected = measure_pairs(trainer, self.eval_rows, measure).T
        trainer._metrics["eval"].clear()  # TRL's own, which nobody reads
        told = {f"eval_{name}": value for name, value in self.summarize(chosen, rejected).items()}
        return {"eval_loss": float(loss.mean()), **told, "eval_pairs": len(loss)}

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows are tokens already; what TRL gets to see are their numbers."""
        return dataset


def summarize_margins(chosen: Floats, rejected: Floats) -> Metrics:
    """Mean margin, and the share of pairs whose chosen side has the higher reward; equal ones count half."""
    margins = chosen - rejected
    accuracy = float(((margins > 0) + 0.5 * (margins == 0)).mean())
    return {"accuracy": accuracy, "margin": float(margins.mean())}
