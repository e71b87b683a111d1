"""Collects rollouts: prompts answered by the policy, scored by the reward, judged by reference and critic."""

import functools
import time
from typing import Any

import numpy
from numpy.typing import NDArray

from .advantages import (
    Floats,
    adapt_kl_coef,
    estimate_advantages,
    estimate_kl,
    explain_variance,
    shape_rewards,
    whiten,
)
from .errors import JobError
from .gather import gather_trained
from .generate import draw_noise, gather_weights, generate
from .prompts import PromptRows
from .rollout import Rollout, State, choose, deal, pad_sequences, share, trim
from .scorer import Answer, Scorer
from .trainer import Metrics
from .vllm_engine import VllmEngine

SAMPLES = 4
"""Responses of a rollout, or of an evaluation, that the ledger shows."""
HELD_OUT = 2**40
"""Where the held-out prompts begin in the stream of positions that noise is drawn for."""


class Collector:
    """Rollouts for one ``trainer`` (a :class:`jobs.ppo_trainer.PpoTrainer`, bound to its run).

    ``scorer`` is None where the reward is one of the model's roles; ``stop`` is the token that ends a response. What
    every method gives is the same on all ranks; each of them is collective.
    """

    def __init__(self, trainer: Any, scorer: Scorer | None, stop: int) -> None:
        self.trainer, self.scorer, self.stop = trainer, scorer, stop
        self.progress = trainer.progress
        self.context = trainer.progress.context
        self.ppo = self.context.plan.spec.ppo
        self.batch = self.context.plan.batch
        self.size: int = self.ppo.rollout_batch or self.batch.global_batch
        """Responses of a rollout."""
        self.tokenizer = trainer.processing_class

    def collect(self, rows: PromptRows, state: State) -> tuple[Rollout, Metrics]:
        """The next prompts of ``rows``, answered and turned into advantages, and what the ledger says of that.

        ``state`` moves on to the rollout's first minibatch.
        """
        positions = numpy.arange(state.position, state.position + self.size)
        chosen = self.progress.order.indices(state.position, state.position + self.size)
        state.position += self.size
        state.rollouts += 1
        state.minibatch = 0
        started = time.perf_counter()
        rollout = self._answer(rows, chosen, positions)
        generated = time.perf_counter()
        epoch = range(self.size // self.batch.global_batch)
        seed, lengths = self.trainer.args.seed, rollout.lengths
        parts = [choose(seed, state.rollouts, number, self.batch.global_batch, lengths) for number in epoch]
        order = numpy.concatenate(parts)
        scores, kl = self._judge(rollout, rows, chosen, order)
        used = self._shape_scores(scores, rollout, state)
        advantages = []
        for values, divergence, score in zip(rollout.values, kl, used, strict=True):
            rewards = shape_rewards(divergence, score, state.kl_coef)
            estimated, returns = estimate_advantages(rewards, values, self.ppo.gamma, self.ppo.gae_lambda)
            advantages.append(estimated)
            rollout.returns.append(returns)
        rollout.advantages = whiten(advantages) if self.ppo.whiten_advantages else advantages
        scored = time.perf_counter()
        told = self._summarize(rollout, scores, kl)
        told |= {
            "kl_coef": state.kl_coef,
            "explained_variance": explain_variance(
                numpy.concatenate(rollout.values), numpy.concatenate(rollout.returns)
            ),
            "generation_s": generated - started,
            "scoring_s": scored - generated,
        }
        self._show(rollout, rows, chosen, scores, "rollout")
        if self.ppo.kl_target is not None:
            state.kl_coef = adapt_kl_coef(state.kl_coef, told["kl"], self.ppo.kl_target, self.size, self.ppo.kl_horizon)
        return rollout, told

    def measure(self, rows: PromptRows) -> Metrics:
        """Scores of responses to all of the held-out ``rows``, always with the same noise."""
        every = numpy.arange(len(rows))
        rollout = self._answer(rows, every, every + HELD_OUT)
        scores, kl = self._judge(rollout, rows, every, numpy.argsort(rollout.lengths, kind="stable"))
        self._show(rollout, rows, every, scores, "answers")
        return self._summarize(rollout, scores, kl)

    def _answer(self, rows: PromptRows, chosen: NDArray[numpy.int64], positions: NDArray[numpy.int64]) -> Rollout:
        """Responses to the rows ``chosen``, of all ranks."""
        trainer = self.trainer
        mine = self._share(len(chosen))
        prompts = [rows.ids[index] for index in chosen[mine]]
        noise = draw_noise(trainer.args.seed, positions[mine], self.ppo.max_new_tokens)
        trainer.model_wrapped.eval()
        write = self._write_by_vllm if self.ppo.engine == "vllm" else self._write
        responses = self._gather(mine, write(prompts, noise))
        return Rollout([rows.ids[index] for index in chosen], responses)

    def _write(self, prompts: list[list[int]], noise: Floats) -> list[list[int]]:
        trainer = self.trainer
        gathered = gather_weights(trainer, is_wanted=self.ppo.gather_for_rollout)
        with gathered as is_collective, trainer.compute_loss_context_manager():
            return generate(
                trainer.model,
                prompts,
                noise,
                temperature=self.ppo.temperature,
                stop=self.stop,
                pad=self.tokenizer.pad_token_id,
                batch_size=self.ppo.generation_batch,
                device=trainer.args.device,
                any_rank=self._any_rank if is_collective else None,
                on_step=lambda: self.progress.beat("rollout"),
            )

    def _write_by_vllm(self, prompts: list[list[int]], noise: Floats) -> list[list[int]]:
        weights = gather_trained(self.trainer, keep=True)
        assert weights is not None
        return self._vllm.generate(
            prompts,
            noise,
            weights,
            temperature=self.ppo.temperature,
            stop=self.stop,
            on_step=lambda: self.progress.beat("rollout"),
        )

    @functools.cached_property
    def _vllm(self) -> VllmEngine:
        trainer = self.trainer
        self.progress.beat("load", now=True)
        return VllmEngine(trainer.model, self.context.plan.spec, is_cpu=trainer.args.device.type == "cpu")

    def _judge(
        self, rollout: Rollout, rows: PromptRows, chosen: NDArray[numpy.int64], order: NDArray[numpy.int64]
    ) -> tuple[Floats, list[Floats]]:
        """Fill in log-probabilities and values; returns the scores, (responses,), and the divergence per token.

        ``order``: what is passed through the model together. In a rollout it is that of the first epoch, so that its
        first minibatch gets to see the very numbers of its own forward pass, and its ratio is exactly 1.

        Raises:
            JobError: a score is no number; the mean of all scores so far would never be one again.
        """
        import torch

        trainer = self.trainer
        indices: list[int] = []
        told: list[tuple[list[float], list[float], list[float]]] = []
        for part in deal(order, self.batch.micro, self.context.rank, self.context.world_size):
            inputs = trainer._prepare_inputs(rollout.batch(part, self.tokenizer.pad_token_id))
            with torch.no_grad(), trainer.compute_loss_context_manager():
                outputs = trainer.model_wrapped(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    labels=inputs["labels"],
                    roles=("policy", "critic", "reference"),
                )
            names = ("log_probs", "values", "reference_log_probs")
            indices += part
            told += zip(*(rollout.pick(outputs[name], part) for name in names), strict=True)
            self.progress.beat("score")
        found = [[numpy.array(numbers) for numbers in item] for item in self._gather(indices, told)]
        rollout.log_probs, rollout.values = [item[0] for item in found], [item[1] for item in found]
        kl = [estimate_kl(item[0], item[2], self.ppo.kl_estimator) for item in found]
        mine = self._share(len(rollout))
        answers = [self._read(rows, int(chosen[index]), rollout.responses[index]) for index in mine]
        if self.scorer is not None:
            # One call for all of them, which may ask a service: a phase that need not beat (hang.py).
            self.progress.beat("reward", now=True)
            scores = self.scorer(answers)
        else:
            scores = self._score_by_role([rollout.prompts[index] for index in mine], answers)
        every = numpy.array(self._gather(mine, scores))
        if bad := int((~numpy.isfinite(every)).sum()):
            raise JobError(f"ppo.reward: {bad} of {len(every)} scores are no finite numbers ({self.ppo.reward})")
        return every, kl

    def _score_by_role(self, prompts: list[list[int]], answers: list[Answer]) -> list[float]:
        """Scores of the reward adapter. Each sequence ends as those that it was trained on: with the end of the turn
        and what the template writes after it."""
        import torch

        trainer, pad = self.trainer, self.tokenizer.pad_token_id
        sequences = [
            # Classifiers read the last token that is not the padding's (transformers 5.23, modeling_layers.py), and so
            # the head was trained: where the end of sequence pads too, that may be the token before it.
            trim(prompt + answer.ids + ([] if answer.has_ended else [self.stop]) + self._tail, pad)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        scores = [0.0] * len(sequences)
        for start in range(0, len(order), self.batch.micro):
            part = order[start : start + self.batch.micro]
            batch = pad_sequences([sequences[index] for index in part], pad)
            inputs = trainer._prepare_inputs(batch)
            with torch.no_grad(), trainer.compute_loss_context_manager():
                told = trainer.model_wrapped(**inputs, roles=("reward",))["rewards"].float().tolist()
            for index, score in zip(part, told, strict=True):
                scores[index] = score
            self.progress.beat("score")
        return scores

    @functools.cached_property
    def _tail(self) -> list[int]:
        """What the chat template writes after the end of the last turn."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            return []
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        _, end, tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(tokenizer.decode([self.stop]))
        return list(tokenizer(tail, add_special_tokens=False)["input_ids"]) if end and tail else []

    def _shape_scores(self, scores: Floats, rollout: Rollout, state: State) -> Floats:
        """Scores as they are learned from: penalised, normalised, clipped."""
        ppo, used = self.ppo, scores.copy()
        if ppo.missing_eos_penalty is not None:
            used -= ppo.missing_eos_penalty * numpy.array([ids[-1] != self.stop for ids in rollout.responses])
        if ppo.normalize_reward:
            state.scores.add(used)
            used = (used - state.scores.mean) / (state.scores.std + 1e-8)
        return used if ppo.clip_reward is None else used.clip(-ppo.clip_reward, ppo.clip_reward)

    def _summarize(self, rollout: Rollout, scores: Floats, kl: list[Floats]) -> Metrics:
        """Of responses: their scores as the reward gave them, divergence per sequence, length."""
        return {
            "score": float(scores.mean()),
            "score_std": float(scores.std()),
            "kl": float(numpy.mean([part.sum() for part in kl])),
            "response_length": float(numpy.mean([len(ids) for ids in rollout.responses])),
            "without_end": float(numpy.mean([ids[-1] != self.stop for ids in rollout.responses])),
        }

    def _read(self, rows: PromptRows, row: int, ids: list[int]) -> Answer:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(rows.said[row], ids, text, ids[-1] == self.stop)

    def _show(
        self, rollout: Rollout, rows: PromptRows, chosen: NDArray[numpy.int64], scores: Floats, event: str
    ) -> None:
        if self.progress.ledger is None:
            return
        answers = [
            self._read(rows, int(row), ids) for row, ids in zip(chosen[:SAMPLES], rollout.responses, strict=False)
        ]
        samples = [
            {"prompt": answer.said, "response": answer.text, "score": float(score)}
            for answer, score in zip(answers, scores, strict=False)
        ]
        self.progress.ledger.event(event, step=self.trainer.state.global_step, samples=samples)

    # Ranks.

    def _share(self, size: int) -> list[int]:
        return share(size, self.context.rank, self.context.world_size)

    def _gather(self, indices: list[int], items: list[Any]) -> list[Any]:
        """The items of all ranks in the order of their indices, each index once."""
        from accelerate.utils import gather_object

        found = dict(gather_object(list(zip(indices, items, strict=True))))
        return [found[index] for index in sorted(found)]

    def _any_rank(self, is_alive: bool) -> bool:
        import torch

        alive = torch.tensor(float(is_alive), device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(alive, reduction="sum") > 0)
