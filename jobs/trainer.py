"""What every stage adds to a TRL trainer: our data order, proof of strategy, checkpoints, evaluation of all rows."""

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from . import checkpoint, proof
from .adapter import cast_trainable
from .finite import check_finite, skips
from .gather import gather_trained
from .model import save_weights
from .order import RowOrder
from .progress import Progress

if TYPE_CHECKING:
    import torch

Metrics = dict[str, float]


class RunTrainer:
    """A mixin: ``class Stage(RunTrainer, trl.SFTTrainer)``. It imports nothing heavy, so a stage can load trl late.

    :meth:`attach` is called once after the trainer's own ``__init__``. A stage gives :meth:`measure`.
    """

    METRICS: ClassVar[tuple[str, ...]] = ()
    """What the stage logs beside loss, rate and gradient norm."""

    def attach(
        self,
        progress: Progress,
        eval_rows: Any,
        trainable_dtype: "torch.dtype",
        compute_dtype: "torch.dtype",
    ) -> None:
        """Bind the run to the trainer.

        ``eval_rows`` are the stage's, or None; ``trainable_dtype`` is what the trained weights are kept
        in, ``compute_dtype`` what is multiplied in.
        """
        trainer: Any = self
        self.progress = progress
        self.eval_rows = eval_rows
        self.trainable_dtype = trainable_dtype
        self.compute_dtype = compute_dtype
        trainer.add_callback(progress.callback(self.METRICS))

    def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:
        return self.progress.order

    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        """Multiply in ``compute_dtype`` where trained weights are kept in a wider one.

        Our own autocast rather than ``bf16=True``: that also asks for bf16 kernels of the CUDA kind on CPU, and the
        mixed precision of accelerate would differ between the strategies.
        """
        import torch

        trainer: Any = self
        return torch.autocast(
            trainer.args.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != self.trainable_dtype
        )

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self
        before = proof.count_parameters(trainer.model)
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]
        proof.check_strategy(self, before, self.progress.context, self.progress.ledger)
        return prepared

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule, on the optimizer as ``accelerator.prepare`` made it.

        transformers 5.23 makes it before that call under DeepSpeed (deepspeed_optim_sched). DeepSpeed then drops the
        empty parameter group of a LoRA model, and torch 2.13 refuses to step the schedule: it has one group more.
        """
        if optimizer is not None:
            return None
        trainer: Any = self
        scheduler = super().create_scheduler(num_training_steps)  # type: ignore[misc]
        self._settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in trainer.optimizer.param_groups
        ]
        return scheduler

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        cast_trainable(trainer.model, self.trainable_dtype)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Optimizer states from the checkpoint; learning rate and weight decay from the plan.

        The checkpoint's optimizer has them too, as they were: the rate of the next step under the old schedule, which
        is 0 at its end. A run that is extended, or resumed with another peak, would take that step with it, and keep
        the old peak (torch 2.13, LambdaLR.load_state_dict).
        """
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        trainer: Any = self
        scheduler, groups = trainer.lr_scheduler, trainer.optimizer.param_groups
        scheduler.base_lrs = [settings["initial_lr"] for settings in self._settings]
        shapes = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        scheduler._last_lr = [peak * shape(scheduler.last_epoch) for peak, shape in shapes]
        for group, settings, rate in zip(groups, self._settings, scheduler._last_lr, strict=True):
            group.update(settings, lr=rate)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient norm of all ranks, just before the optimizer's step; that step is left out where the norm is no
        number and train.on_nonfinite says skip.

        Optimizers leave alone a weight without gradient, and its state. DeepSpeed has left the step out itself by then
        (0.19, zero/stage3.py and stage_1_and_2.py, step), and transformers 5.23 the schedule's, which is the steps'.
        """
        trainer: Any = self
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        if skips(self.progress.context.plan.spec.train) and norm is not None and not math.isfinite(norm):
            if trainer.accelerator.optimizer_step_was_skipped:
                trainer.lr_scheduler.step()
            else:
                model.zero_grad()
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers does it; a sum of losses that has become NaN would stay so (5.23, _maybe_log_save_evaluate,
        subtracts it from itself)."""
        trainer: Any = self
        if not math.isfinite(logs.get("loss", 0.0)):
            trainer._tr_loss.zero_()
        super().log(logs, start_time)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        from transformers import Trainer

        def write() -> Path:
            # transformers' own writer: TRL's override only adds a model card.
            trainer: Any = self
            Trainer._save_checkpoint(trainer, model, trial)
            return Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"

        checkpoint.save(self, self.progress, write)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The whole trained weights and the tokenizer, from one rank: later stages start from them.

        transformers 5.23 writes none under FSDP's SHARDED_STATE_DICT, and gathers frozen weights under ZeRO-2.

        Raises:
            JobError: a weight is no number.
        """
        trainer: Any = self
        weights = gather_trained(trainer, keep=trainer.args.should_save)
        check_finite(weights)
        if weights is not None:
            self.write_weights(Path(output_dir or trainer.args.output_dir), weights)

    def write_weights(self, folder: Path, weights: "dict[str, torch.Tensor]") -> None:
        """Write the whole trained ``weights`` (:func:`jobs.gather.gather_trained`) and the tokenizer to ``folder``."""
        trainer: Any = self
        save_weights(trainer.model, folder, weights)
        trainer.processing_class.save_pretrained(folder)

    def _send_telemetry(self) -> None:
        """Nothing: TRL 1.16 tells the hub about each trainer that is made, and a compute node phones nobody."""

    def evaluate(self, *args: Any, **kwargs: Any) -> Metrics:
        """The stage's :meth:`measure` of all evaluation rows."""
        trainer: Any = self
        self.progress.begin_evaluation(trainer.state.global_step)
        metrics = self.measure() if self.eval_rows is not None else {}
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    def measure(self) -> Metrics:
        """``eval_...``: what the stage says of ``self.eval_rows``, the same on all ranks."""
        raise NotImplementedError
