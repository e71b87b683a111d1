"""Takes the supervisor's signals over from submitit."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Signals:
    """Whether SIGTERM or SIGINT came: scancel, preemption, the time limit, or ``tuneyard cancel``.

    A flag and no exception: it is looked at where the ranks can be ended in good order.
    """

    def __init__(self) -> None:
        self.has_come = False

    def take(self, number: int, frame: FrameType | None) -> None:
        self.has_come = True


@contextmanager
def handled_signals() -> Iterator[Signals]:
    """Take SIGTERM and SIGINT over the handlers that submitit set: those would requeue the job beside us."""
    signals = Signals()
    saved = {name: signal.signal(name, signals.take) for name in (signal.SIGTERM, signal.SIGINT)}
    # A warning for the ranks; where a site sends it to the batch step too, submitit's handler would requeue the job.
    # Not SIG_IGN, which srun and the ranks would inherit.
    saved |= {name: signal.signal(name, lambda *_: None) for name in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        yield signals
    finally:
        for name, handler in saved.items():
            signal.signal(name, handler)
