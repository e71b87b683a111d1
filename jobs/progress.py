"""Writes a stage's progress: ledger rows from rank 0, heartbeats from every rank."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from launcher.contract.ledger import LedgerWriter

from .background import Background
from .context import RankContext
from .finite import LossWatch
from .memory import count_live_bytes, measure_peak_gib
from .order import RowOrder
from .stop import agree

if TYPE_CHECKING:
    from transformers import TrainerCallback

BEAT_SECONDS = 1.0
"""Shortest time between two heartbeats: each is a file, and a run may hold thousands of ranks."""
ASK_SECONDS = 5.0
"""Between two questions to rank 0's store."""


class Progress:
    """How far the run is; lives on every rank, writes the ledger where it holds one (rank 0).

    ``tokens_at`` says how many tokens, of all ranks and without padding, the steps up to one have used; it is asked
    for no other step than the newest.
    """

    def __init__(
        self,
        context: RankContext,
        ledger: LedgerWriter | None,
        order: RowOrder,
        tokens_at: Callable[[int], int],
        max_steps: int,
    ) -> None:
        self.context = context
        self.ledger = ledger
        self.max_steps = max_steps
        self.last_metrics: dict[str, float] = {}
        """Evaluation at ``last_eval_step``, as a checkpoint of the same step records it."""
        self.last_eval_step = -1
        self.has_moved = False
        """Whether a step had a rate and a gradient above zero, so that weights must have changed."""
        self.is_stopped = False
        """Whether the ranks have agreed to stop, and have saved."""
        self.order = order
        self.tokens_at = tokens_at
        self.epoch_at: Callable[[int], float] = lambda step: step * context.plan.batch.global_batch / order.rows
        self.background = Background()
        """What publishes this rank's checkpoints; to be waited for before the run's end, or a stop."""
        self._watch = LossWatch(context.plan.spec.train.on_nonfinite, ledger)
        self._tokens = 0
        self._step = 0
        self._mark = time.perf_counter()
        self._last_beat = 0.0
        self._last_ask = 0.0
        self._round_trips: deque[float] = deque(maxlen=3)
        self._eval_started = 0.0

    def beat(self, phase: str, *, now: bool = False) -> None:
        """Say that this rank is alive and how far it is."""
        if now or time.monotonic() - self._last_beat >= BEAT_SECONDS:
            self._last_beat = time.monotonic()
            trips = self._round_trips
            # The shortest of three: one lost packet makes no slow network.
            self.context.beat(self._step, phase, min(trips) if len(trips) == trips.maxlen else None)

    def begin(self, step: int) -> None:
        """Training starts, or goes on, after ``step``."""
        self._step = step
        self._tokens = self.tokens_at(step)
        self._mark = time.perf_counter()
        self.beat("train", now=True)

    def record_step(
        self, step: int, *, loss: float, learning_rate: float, grad_norm: float | None, **metrics: float
    ) -> None:
        """One optimizer step is done; ``metrics`` are the stage's own.

        Raises:
            JobError: as :meth:`jobs.finite.LossWatch.judge` does.
            Exception: a checkpoint could not be published.
        """
        now = time.perf_counter()
        before, self._tokens = self._tokens, self.tokens_at(step)
        tokens = self._tokens - before
        self._step = step
        if time.monotonic() - self._last_ask >= ASK_SECONDS:
            self._last_ask = time.monotonic()
            self._round_trips.extend(_ask_store())
        self.beat("train", now=step == self.max_steps)
        self.background.look()
        is_taken = self._watch.judge(step, loss, grad_norm)
        self.has_moved = self.has_moved or (is_taken and learning_rate > 0 and bool(grad_norm))
        if self.ledger is not None:
            rate = tokens / max(now - self._mark, 1e-9)
            self._print(step, f"loss {loss:.4f}  rate {learning_rate:.3g}  {rate:.0f} tokens/s")
            self.ledger.metric(
                step,
                **_keep_finite({"loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm, **metrics}),
                epoch=self.epoch_at(step),
                tokens=self._tokens,
                tokens_per_s=round(rate, 2),
                memory_gib=round(measure_peak_gib(), 3),
            )
        self._mark = now

    def record_memory(self, step: int, ranks: list[dict[str, int]]) -> None:
        """Bytes of live tensors after ``step``, by kind of device, of every rank."""
        if self.ledger is not None:
            devices = sorted({device for found in ranks for device in found})
            held = {device: [found.get(device, 0) for found in ranks] for device in devices}
            spread = {device: {"min": min(sizes), "max": max(sizes)} for device, sizes in held.items()}
            self.ledger.event("memory", step=step, live_bytes=spread)
        self._mark = time.perf_counter()

    def begin_evaluation(self, step: int) -> None:
        self._step = step
        self._eval_started = time.perf_counter()
        self.beat("evaluate", now=True)

    def record_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """An evaluation is done; its time does not count as training."""
        metrics = _keep_finite(metrics)
        self.last_eval_step, self.last_metrics = step, metrics
        seconds = round(time.perf_counter() - self._eval_started, 3)
        if self.ledger is not None and metrics:
            self._print(step, "  ".join(f"{name} {value:.6g}" for name, value in metrics.items()))
            self.ledger.metric(step, **metrics)
            self.ledger.event("evaluated", step=step, seconds=seconds, **metrics)
        self._mark = time.perf_counter()
        self.beat("train", now=True)

    def metrics_at(self, step: int) -> dict[str, float]:
        """The evaluation of exactly ``step``, or nothing."""
        return self.last_metrics if self.last_eval_step == step else {}

    def end_save(self) -> None:
        """A checkpoint is written; its time does not count as training."""
        self._mark = time.perf_counter()
        self.beat("train", now=True)

    def stop(self, step: int) -> None:
        """All ranks have agreed to stop after ``step``, which is saved next."""
        self.is_stopped = True
        if self.ledger is not None:
            self.ledger.event("stop_requested", step=step)
            self._print(step, "told to stop: saves, and leaves")

    def _print(self, step: int, text: str) -> None:
        """A line for whoever follows rank 0's log."""
        print(f"step {step}/{self.max_steps}  {text}", flush=True)

    def callback(self, metrics: tuple[str, ...] = ()) -> "TrainerCallback":
        """What ties this to a transformers Trainer; ``metrics`` are names in its logs that go into the ledger."""
        return _make_callback(self, metrics)


def _make_callback(progress: Progress, metrics: tuple[str, ...]) -> "TrainerCallback":
    from accelerate.utils import gather_object
    from transformers import TrainerCallback

    train = progress.context.plan.spec.train

    class LedgerCallback(TrainerCallback):
        """Passes the Trainer's events on; decides when it evaluates and saves."""

        learning_rate = 0.0
        is_first = True
        """Whether no step was done yet: after the first one, optimizer states are there too."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.begin(state.global_step)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The rate that this step uses; what the Trainer logs under DeepSpeed is already the next step's.
            self.learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step, last = state.global_step, state.global_step >= progress.max_steps
            control.should_evaluate = last or _is_due(step, train.eval_every_steps)
            control.should_save = _is_due(step, train.save_every_steps) or (last and train.save_every_steps is not None)
            if agree(args.device) and not last:
                # The evaluation of this step is made up for when the run goes on (stage.py): time is short.
                control.should_evaluate, control.should_save, control.should_training_stop = False, True, True
                progress.stop(step)

        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.beat("train")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                progress.record_step(
                    state.global_step,
                    loss=logs["loss"],
                    learning_rate=self.learning_rate,
                    grad_norm=logs.get("grad_norm"),
                    **{name: logs[name] for name in metrics if name in logs},
                )
                if self.is_first:
                    self.is_first = False
                    progress.record_memory(state.global_step, gather_object([count_live_bytes()]))
            # The ledger has it; the Trainer would write the whole history into every checkpoint.
            state.log_history.clear()

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            progress.record_evaluation(state.global_step, metrics)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.end_save()

    return LedgerCallback()


def _ask_store() -> list[float]:
    """Seconds of one round trip to the store on rank 0's node; none where there is one rank."""
    from torch import distributed

    if not distributed.is_initialized():
        return []
    started = time.perf_counter()
    distributed.distributed_c10d._get_default_store().check(["tuneyard"])
    return [time.perf_counter() - started]


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _keep_finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Without what is no number: JSON has no word for it, and no checkpoint is best by it."""
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
