"""Does one thing at a time beside training."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """A thread of this rank's. What it raises, it raises again where somebody looks: no failure is lost."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin ``work`` when what was begun before is done."""
        self.wait()
        self._work = self._executor.submit(work)

    def look(self) -> None:
        """Raise what the work has raised, if it has ended."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is left to do."""
        work, self._work = self._work, None
        if work is not None:
            work.result()
