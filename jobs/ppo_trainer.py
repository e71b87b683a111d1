"""What ppo adds to transformers' Trainer: rollouts in the place of batches, its loss, its state in checkpoints."""

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from .critic import load_trained, write_critic
from .generate import draw_noise, gather_weights, generate
from .progress import Progress
from .prompts import PromptRows
from .roles import Roles
from .rollout import Rollout, State, pad_sequences
from .scorer import Answer, Scorer
from .trainer import Metrics, RunTrainer

if TYPE_CHECKING:
    import torch

SAMPLES = 4
"""Responses of a rollout, or of an evaluation, that the ledger shows."""
HELD_OUT = 2**40
"""Where the held-out prompts begin in the stream of positions that noise is drawn for."""
STEP_METRICS = ("policy_loss", "value_loss", "ratio", "clip_fraction", "approx_kl", "entropy")


class PpoTrainer(RunTrainer):
    """A mixin: ``class Stage(PpoTrainer, transformers.Trainer)``.

    An optimizer step learns from one minibatch of a rollout; a used-up rollout is followed by the next. All that is
    decided between the passes through the model is computed alike on every rank, from what all of them gathered.
    """

    METRICS = (
        *(f"ppo/{name}" for name in STEP_METRICS),
        *("ppo/score", "ppo/score_std", "ppo/kl", "ppo/kl_coef", "ppo/response_length", "ppo/without_end"),
        *("ppo/explained_variance", "ppo/generation_s", "ppo/scoring_s", "ppo/update_s"),
    )

    def __init__(self, *, rows: PromptRows, roles: Roles, scorer: Scorer | None, stop: int, **options: Any) -> None:
        """``scorer`` is None where the reward is one of the ``roles``; ``stop`` is the token that ends a response."""
        self.rows, self.roles, self.scorer, self.stop = rows, roles, scorer, stop
        self.rollout: Rollout | None = None
        self.run_state = State()
        self._told: Metrics = {}
        self._step_started = 0.0
        super().__init__(data_collator=None, **options)  # type: ignore[call-arg]
        trainer: Any = self
        # The loss is over the tokens of the whole minibatch: nothing divides it by micro batches.
        trainer.model_accepts_loss_kwargs = True

    def attach(self, progress: Progress, *args: Any, **kwargs: Any) -> None:
        super().attach(progress, *args, **kwargs)
        self.context = progress.context
        self.ppo = progress.context.plan.spec.ppo
        self.batch = progress.context.plan.batch
        self.rollout_size = self.ppo.rollout_batch or self.batch.global_batch
        self.run_state.kl_coef = self.ppo.kl_coef
        progress.tokens_at = lambda _: self.run_state.tokens
        progress.epoch_at = lambda _: self.run_state.position / len(self.rows)

    # One step: its batches and its loss.

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """This rank's micro batches of the next minibatch, and the response tokens of the whole minibatch."""
        import torch

        state = self.run_state
        if self.rollout is None or state.minibatch == self.ppo.epochs * len(self.rollout) // self.batch.global_batch:
            self.rollout = self.collect()
        self._step_started = time.perf_counter()
        chosen = self._choose(len(self.rollout), state.minibatch)
        state.minibatch += 1
        state.tokens += self.rollout.count_tokens(chosen)
        trainer: Any = self
        batches = [self.rollout.batch(part, trainer.processing_class.pad_token_id) for part in self._deal(chosen)]
        self._num_tokens = self.rollout.count_response_tokens(chosen)
        self._sums = torch.zeros(len(STEP_METRICS), dtype=torch.float64, device=trainer.args.device)
        return batches, torch.tensor(self._num_tokens)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> "torch.Tensor":
        """The clipped losses of policy and value (arXiv:1707.06347, eq. 7 and 9), summed over this micro batch's
        response tokens and divided by those of the whole minibatch."""
        import torch

        ppo, trainer = self.ppo, self
        told = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["labels"],
            roles=("policy", "critic"),
        )
        mask = inputs["labels"][:, 1:] != -100
        change = (told["log_probs"].float() - inputs["log_probs"]) * mask
        ratio, values = change.exp(), told["values"].float()
        limited = ratio.clamp(1 - ppo.clip_range, 1 + ppo.clip_range)
        policy_loss = -torch.minimum(inputs["advantages"] * ratio, inputs["advantages"] * limited)
        value_loss = (values - inputs["returns"]) ** 2
        if ppo.value_clip_range is not None:
            near = inputs["values"] + (values - inputs["values"]).clamp(-ppo.value_clip_range, ppo.value_clip_range)
            value_loss = torch.maximum(value_loss, (near - inputs["returns"]) ** 2)
        value_loss, entropy = value_loss / 2, told["entropy"].float()
        loss = policy_loss + ppo.value_coef * value_loss - ppo.entropy_coef * entropy
        with torch.no_grad():
            is_clipped = (ratio - 1).abs() > ppo.clip_range
            # k3 of the old policy against the new one.
            divergence = torch.expm1(change) - change
            told_of = (policy_loss, value_loss, ratio, is_clipped, divergence, entropy)
            self._sums += torch.stack([(part * mask).double().sum() for part in told_of])
        # Every strategy takes the mean over the ranks.
        return (loss * mask).sum() * (trainer.args.world_size / self._num_tokens)  # type: ignore[attr-defined]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what PPO says of the step, and of the rollout where the step is its first one."""
        if "loss" in logs:
            trainer: Any = self
            means = (trainer.accelerator.reduce(self._sums, reduction="sum") / self._num_tokens).tolist()
            logs |= {f"ppo/{name}": mean for name, mean in zip(STEP_METRICS, means, strict=True)}
            logs |= self._told
            logs["ppo/update_s"] = time.perf_counter() - self._step_started
            self._told = {}
            if self.ppo.stop_kl is not None and logs["ppo/approx_kl"] > self.ppo.stop_kl:
                self.rollout = None
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> Any:
        """Two groups of parameters: the policy's and the critic's, each with its own peak learning rate."""
        trainer: Any = self
        if trainer.optimizer is None:
            kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
            rate, decay = trainer.args.learning_rate, trainer.args.weight_decay
            groups = [
                {"params": self.roles.trained(critic=False), "weight_decay": decay},
                {
                    "params": self.roles.trained(critic=True),
                    "weight_decay": decay,
                    "lr": self.ppo.critic_learning_rate or rate,
                },
            ]
            trainer.optimizer = kind(groups, **options)
        return trainer.optimizer

    # A rollout.

    def collect(self) -> Rollout:
        """The next prompts answered, scored and judged, the same on every rank."""
        state = self.run_state
        positions = numpy.arange(state.position, state.position + self.rollout_size)
        chosen = self.progress.order.indices(state.position, state.position + self.rollout_size)
        state.position += self.rollout_size
        state.rollouts += 1
        state.minibatch = 0
        started = time.perf_counter()
        rollout = self._answer(self.rows, chosen, positions)
        generated = time.perf_counter()
        order = self._choose(self.rollout_size, 0, self.rollout_size // self.batch.global_batch)
        scores, kl = self._judge(rollout, self.rows, chosen, order)
        used = self._shape_scores(scores, rollout)
        advantages = []
        for values, divergence, score in zip(rollout.values, kl, used, strict=True):
            rewards = shape_rewards(divergence, score, state.kl_coef)
            estimated, returns = estimate_advantages(rewards, values, self.ppo.gamma, self.ppo.gae_lambda)
            advantages.append(estimated)
            rollout.returns.append(returns)
        rollout.advantages = whiten(advantages) if self.ppo.whiten_advantages else advantages
        scored = time.perf_counter()
        told = {f"ppo/{name}": value for name, value in self._summarize(rollout, scores, kl).items()}
        values, returns = numpy.concatenate(rollout.values), numpy.concatenate(rollout.returns)
        self._told = {
            **told,
            "ppo/kl_coef": state.kl_coef,
            "ppo/explained_variance": explain_variance(values, returns),
            "ppo/generation_s": generated - started,
            "ppo/scoring_s": scored - generated,
        }
        self._show(rollout, self.rows, chosen, scores, "rollout")
        if self.ppo.kl_target is not None:
            state.kl_coef = adapt_kl_coef(
                state.kl_coef, told["ppo/kl"], self.ppo.kl_target, self.rollout_size, self.ppo.kl_horizon
            )
        return rollout

    def measure(self) -> Metrics:
        """Responses to all held-out prompts, always with the same noise; ``eval_loss`` is what PPO minimises."""
        rows: PromptRows = self.eval_rows
        every = numpy.arange(len(rows))
        rollout = self._answer(rows, every, every + HELD_OUT)
        scores, kl = self._judge(rollout, rows, every, every)
        told = self._summarize(rollout, scores, kl)
        self._show(rollout, rows, every, scores, "answers")
        loss = self.run_state.kl_coef * told["kl"] - told["score"]
        return {"eval_loss": loss, **{f"eval_{name}": value for name, value in told.items()}, "eval_prompts": len(rows)}

    def _answer(self, rows: PromptRows, chosen: NDArray[numpy.int64], positions: NDArray[numpy.int64]) -> Rollout:
        """Responses to the rows ``chosen``, of all ranks."""
        trainer: Any = self
        mine = self._share(len(chosen))
        noise = draw_noise(trainer.args.seed, positions[mine], self.ppo.max_new_tokens)
        trainer.model_wrapped.eval()
        gathered = gather_weights(trainer, is_wanted=self.ppo.gather_for_rollout)
        with gathered as is_collective, trainer.compute_loss_context_manager():
            written = generate(
                trainer.model,
                [rows.ids[index] for index in chosen[mine]],
                noise,
                temperature=self.ppo.temperature,
                stop=self.stop,
                pad=trainer.processing_class.pad_token_id,
                batch_size=self.ppo.generation_batch,
                device=trainer.args.device,
                any_rank=self._any_rank if is_collective else None,
                on_batch=lambda: self.progress.beat("rollout"),
            )
        responses = self._gather(mine, written)
        return Rollout([rows.ids[index] for index in chosen], responses)

    def _judge(
        self, rollout: Rollout, rows: PromptRows, chosen: NDArray[numpy.int64], order: NDArray[numpy.int64]
    ) -> tuple[Floats, list[Floats]]:
        """Fill in log-probabilities and values; returns the scores, (responses,), and the divergence per token.

        ``order``: what is passed through the model together. In a rollout it is that of the first epoch, so that its
        first minibatch gets to see the very numbers of its own forward pass, and its ratio is exactly 1.
        """
        import torch

        trainer: Any = self
        pad = trainer.processing_class.pad_token_id
        indices: list[int] = []
        told: list[tuple[list[float], list[float], list[float]]] = []
        for part in self._deal(order):
            inputs = trainer._prepare_inputs(rollout.batch(part, pad))
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
            scores = self.scorer(answers)
        else:
            scores = self._score_by_role([rollout.prompts[index] for index in mine], answers)
        return numpy.array(self._gather(mine, scores)), kl

    def _score_by_role(self, prompts: list[list[int]], answers: list[Answer]) -> list[float]:
        """Scores of the reward adapter. Each sequence ends as those that it was trained on: with the end of the turn
        and what the template writes after it."""
        import torch

        trainer: Any = self
        scores: list[float] = []
        for start in range(0, len(answers), trainer.args.per_device_train_batch_size):
            part = slice(start, start + trainer.args.per_device_train_batch_size)
            sequences = [
                prompt + answer.ids + ([] if answer.has_ended else [self.stop]) + self._tail
                for prompt, answer in zip(prompts[part], answers[part], strict=True)
            ]
            inputs = trainer._prepare_inputs(pad_sequences(sequences, trainer.processing_class.pad_token_id))
            with torch.no_grad(), trainer.compute_loss_context_manager():
                scores += trainer.model_wrapped(**inputs, roles=("reward",))["rewards"].float().tolist()
            self.progress.beat("score")
        return scores

    @functools.cached_property
    def _tail(self) -> list[int]:
        """What the chat template writes after the end of the last turn."""
        trainer: Any = self
        tokenizer = trainer.processing_class
        if tokenizer.chat_template is None:
            return []
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        _, end, tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(tokenizer.decode([self.stop]))
        return list(tokenizer(tail, add_special_tokens=False)["input_ids"]) if end and tail else []

    def _shape_scores(self, scores: Floats, rollout: Rollout) -> Floats:
        """Scores as they are learned from: penalised, normalised, clipped."""
        ppo, used = self.ppo, scores.copy()
        if ppo.missing_eos_penalty is not None:
            used -= ppo.missing_eos_penalty * numpy.array([ids[-1] != self.stop for ids in rollout.responses])
        if ppo.normalize_reward:
            spread = self.run_state.scores
            spread.add(used)
            used = (used - spread.mean) / (spread.std + 1e-8)
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
        trainer: Any = self
        text = trainer.processing_class.decode(ids, skip_special_tokens=True)
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
        trainer: Any = self
        self.progress.ledger.event(event, step=trainer.state.global_step, samples=samples)

    # Ranks.

    def _choose(self, size: int, minibatch: int, count: int = 1) -> NDArray[numpy.int64]:
        """The responses of ``count`` minibatches from ``minibatch`` on, all of one epoch over the rollout."""
        batch = self.batch.global_batch
        epoch, number = divmod(minibatch, size // batch)
        trainer: Any = self
        seed = [trainer.args.seed, self.run_state.rollouts, epoch]
        order = numpy.random.default_rng(seed).permutation(size)
        return order[number * batch : (number + count) * batch]

    def _deal(self, order: NDArray[numpy.int64]) -> list[list[int]]:
        """This rank's micro batches of ``order``; all ranks have equally many, the last rows filled up by the first.

        As accelerate deals batches: whole micro batches to the ranks in turn.
        """
        micro, ranks = self.batch.micro, self.context.world_size
        missing = -len(order) % (micro * ranks)
        filled = numpy.resize(order, len(order) + missing)
        parts = filled.reshape(-1, ranks, micro)[:, self.context.rank]
        return [[int(index) for index in part] for part in parts]

    def _share(self, size: int) -> list[int]:
        """What this rank writes and scores of ``size`` responses; all ranks have equally many."""
        ranks = self.context.world_size
        return [index % size for index in range(self.context.rank, size + (-size % ranks), ranks)]

    def _gather(self, indices: list[int], items: list[Any]) -> list[Any]:
        """The items of all ranks in the order of their indices, each index once."""
        from accelerate.utils import gather_object

        found = dict(gather_object(list(zip(indices, items, strict=True))))
        return [found[index] for index in sorted(found)]

    def _any_rank(self, is_alive: bool) -> bool:
        import torch

        trainer: Any = self
        alive = torch.tensor(float(is_alive), device=trainer.args.device)
        return bool(trainer.accelerator.reduce(alive, reduction="sum") > 0)

    # Checkpoints.

    def write_weights(self, folder: Path, weights: "dict[str, torch.Tensor]") -> None:
        super().write_weights(folder, weights)
        write_critic(self.roles, folder, weights)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        trainer: Any = self
        if trainer.args.should_save:
            self.run_state.save(Path(output_dir or trainer.args.output_dir), self.rollout)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.roles, Path(resume_from_checkpoint))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            self.run_state, self.rollout = State.load(Path(resume_from_checkpoint))
        return prepared
