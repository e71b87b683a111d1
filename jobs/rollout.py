"""A rollout: what the policy answered, what that was worth, and the minibatches that are learned from it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from launcher.contract.files import write_json

from .advantages import Floats, Spread
from .masking import IGNORED

STATE, ARRAYS = "ppo.json", "rollout.npz"


@dataclass
class Rollout:
    """The same on every rank. Item ``i`` of each list is response ``i``'s: token ids, and one number per token of it
    (float64; ``log_probs`` and ``values`` are exact float32 numbers)."""

    prompts: list[list[int]]
    responses: list[list[int]]
    log_probs: list[Floats] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)
    advantages: list[Floats] = field(default_factory=list)
    returns: list[Floats] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """Tokens of each prompt and its response, int64 of shape (responses,)."""
        return numpy.array([len(prompt) + len(ids) for prompt, ids in zip(self.prompts, self.responses, strict=True)])

    def count_tokens(self, indices: NDArray[numpy.int64]) -> int:
        """Tokens of prompts and responses."""
        return int(self.lengths[indices].sum())

    def count_response_tokens(self, indices: NDArray[numpy.int64]) -> int:
        return sum(len(self.responses[index]) for index in indices)

    def batch(self, indices: list[int], pad_token: int) -> dict[str, Any]:
        """Sequences as tensors, padded on the right.

        ``input_ids``, ``attention_mask`` and ``labels`` (-100 but at the response's tokens): int64, (batch, tokens).
        What is known yet of ``log_probs``, ``values``, ``advantages`` and ``returns``: float32, (batch, tokens - 1),
        the place before a token being that token's.
        """
        import torch

        known = {name: getattr(self, name) for name in ("log_probs", "values", "advantages", "returns")}
        known = {name: parts for name, parts in known.items() if parts}
        batch = pad_sequences([self.prompts[index] + self.responses[index] for index in indices], pad_token)
        shape = batch["input_ids"].shape
        batch["labels"] = torch.full(shape, IGNORED)
        batch |= {name: torch.zeros(shape[0], shape[1] - 1) for name in known}
        for row, index in enumerate(indices):
            start, stop = len(self.prompts[index]), len(self.prompts[index]) + len(self.responses[index])
            batch["labels"][row, start:stop] = batch["input_ids"][row, start:stop]
            for name, parts in known.items():
                batch[name][row, start - 1 : stop - 1] = torch.tensor(parts[index], dtype=torch.float32)
        return batch

    def pick(self, told: Any, indices: list[int]) -> list[list[float]]:
        """Of ``told``, (batch, tokens - 1) as in :meth:`batch`, the numbers of each response's tokens."""
        rows = told.float().tolist()
        starts = [len(self.prompts[index]) - 1 for index in indices]
        lengths = [len(self.responses[index]) for index in indices]
        return [row[start : start + length] for row, start, length in zip(rows, starts, lengths, strict=True)]


def choose(seed: int, rollout: int, minibatch: int, batch: int, lengths: NDArray[numpy.int64]) -> NDArray[numpy.int64]:
    """The responses of minibatch ``minibatch`` of the ``rollout``-th rollout: each epoch over it has an order of its
    own, cut into minibatches of ``batch``. int64, shape (batch,).

    Within it they stand by their ``lengths``, int64 of shape (responses,): micro batches have little padding.
    """
    epoch, number = divmod(minibatch, len(lengths) // batch)
    order = numpy.random.default_rng([seed, rollout, epoch]).permutation(len(lengths))
    chosen = order[number * batch : (number + 1) * batch]
    return chosen[numpy.argsort(lengths[chosen], kind="stable")]


def deal(order: NDArray[numpy.int64], micro: int, rank: int, ranks: int) -> list[list[int]]:
    """The micro batches of ``order`` that are ``rank``'s; all ranks have equally many, the last rows filled up by the
    first. As accelerate deals batches: whole micro batches to the ranks in turn."""
    filled = numpy.resize(order, len(order) + -len(order) % (micro * ranks))
    return [[int(index) for index in part] for part in filled.reshape(-1, ranks, micro)[:, rank]]


def share(size: int, rank: int, ranks: int) -> list[int]:
    """What ``rank`` writes and scores of ``size`` responses; all ranks have equally many, the last ones twice the
    first responses where it does not come out even."""
    return [index % size for index in range(rank, size + (-size % ranks), ranks)]


def pad_sequences(sequences: list[list[int]], pad_token: int) -> dict[str, Any]:
    """``input_ids`` and ``attention_mask`` of token ids, padded on the right: int64, (sequences, tokens)."""
    import torch

    shape = (len(sequences), max(map(len, sequences)))
    ids, mask = torch.full(shape, pad_token), torch.zeros(shape, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def trim(ids: list[int], token: int) -> list[int]:
    """``ids`` without those at its end that are ``token``, but for the first of all."""
    stop = len(ids)
    while stop > 1 and ids[stop - 1] == token:
        stop -= 1
    return ids[:stop]


@dataclass
class State:
    """Where a run is between two steps, beside its weights: the same on every rank, and part of every checkpoint."""

    position: int = 0
    """Prompts used so far: where the next rollout begins in their order."""
    rollouts: int = 0
    minibatch: int = 0
    """The next one of the newest rollout."""
    tokens: int = 0
    kl_coef: float = 0.0
    scores: Spread = field(default_factory=Spread)
    """Of all responses so far."""

    def save(self, folder: Path, rollout: Rollout | None) -> None:
        write_json(folder / STATE, asdict(self))
        if rollout is None:
            return
        parts: dict[str, Any] = {"prompts": rollout.prompts, "responses": rollout.responses}
        parts |= {name: getattr(rollout, name) for name in ("log_probs", "values", "advantages", "returns")}
        arrays: dict[str, Any] = {
            name: numpy.concatenate([numpy.asarray(item) for item in items]) for name, items in parts.items()
        }
        lengths: dict[str, Any] = {
            f"{name}_lengths": numpy.array(list(map(len, parts[name]))) for name in ("prompts", "responses")
        }
        numpy.savez(folder / ARRAYS, **arrays, **lengths)

    @classmethod
    def load(cls, folder: Path) -> tuple["State", Rollout | None]:
        value = json.loads((folder / STATE).read_text(encoding="utf-8"))
        state = cls(**{**value, "scores": Spread(**value["scores"])})
        if not (folder / ARRAYS).is_file():
            return state, None
        with numpy.load(folder / ARRAYS) as stored:
            ends = {name: numpy.cumsum(stored[f"{name}_lengths"])[:-1] for name in ("prompts", "responses")}
            tokens = {name: [part.tolist() for part in numpy.split(stored[name], ends[name])] for name in ends}
            names = ("log_probs", "values", "advantages", "returns")
            numbers: dict[str, Any] = {name: numpy.split(stored[name], ends["responses"]) for name in names}
        return state, Rollout(**tokens, **numbers)
