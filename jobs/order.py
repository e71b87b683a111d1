"""The order in which training rows are used: one endless stream, a pure function of the seed."""

from collections.abc import Iterator

import numpy
from numpy.typing import NDArray


class RowOrder:
    """Seeded permutations of ``rows`` rows, one after the other.

    Optimizer step ``s`` (from 0) takes positions ``[s * global_batch, (s + 1) * global_batch)`` over all ranks and
    micro batches: accelerate 1.15 deals whole micro batches to the ranks in turn (``BatchSamplerShard`` without
    ``split_batches``). So what a step learns from does not depend on the number of ranks, no epoch ends in a short
    batch, and the data position of a checkpoint is its step times the global batch.

    As a sampler it yields the ``length`` row indices of the whole run, which the Trainer sees as one epoch.
    """

    def __init__(self, rows: int, seed: int, length: int) -> None:
        self.rows = rows
        self.length = length
        self._seed = seed
        self._epoch = -1
        self._permutation: NDArray[numpy.int64] = numpy.empty(0, dtype=numpy.int64)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self.length, self.rows):
            yield from self.indices(start, min(start + self.rows, self.length)).tolist()

    def indices(self, start: int, stop: int) -> NDArray[numpy.int64]:
        """Row indices at the positions [start, stop) of the stream: int64, shape (stop - start,)."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.rows)
            end = min(stop, (epoch + 1) * self.rows)
            parts.append(self._permute(epoch)[offset : offset + end - start])
            start = end
        return numpy.concatenate(parts) if parts else numpy.empty(0, dtype=numpy.int64)

    def count_tokens(self, lengths: NDArray[numpy.int64], stop: int) -> int:
        """Tokens of the positions before ``stop``, where row ``i`` has ``lengths[i]``: no rank has to ask the others,
        and a resumed run goes on counting where the first one was."""
        epochs, offset = divmod(stop, self.rows)
        # Whole epochs need no permutation: a long run resumes without replaying its order.
        rest = self.indices(epochs * self.rows, epochs * self.rows + offset)
        return int(lengths.sum()) * epochs + int(lengths[rest].sum())

    def _permute(self, epoch: int) -> NDArray[numpy.int64]:
        if epoch != self._epoch:
            generator = numpy.random.Generator(numpy.random.PCG64([self._seed, epoch]))
            self._epoch, self._permutation = epoch, generator.permutation(self.rows)
        return self._permutation
