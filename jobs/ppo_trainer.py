"""What ppo adds to transformers' Trainer: rollouts in the place of batches, its loss, its state in checkpoints."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .collector import Collector
from .critic import load_trained, write_critic
from .progress import Progress
from .prompts import PromptRows
from .roles import Roles
from .rollout import Rollout, State, choose, deal
from .scorer import Scorer
from .trainer import Metrics, RunTrainer

if TYPE_CHECKING:
    import torch

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
        self.collector = Collector(self, self.scorer, self.stop)
        self.run_state.kl_coef = self.ppo.kl_coef
        progress.tokens_at = lambda _: self.run_state.tokens
        progress.epoch_at = lambda _: self.run_state.position / len(self.rows)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """This rank's micro batches of the next minibatch, and the response tokens of the whole minibatch."""
        import torch

        trainer: Any = self
        state, batch, context = self.run_state, self.batch, self.context
        if self.rollout is None or state.minibatch == self.ppo.epochs * len(self.rollout) // batch.global_batch:
            self.rollout, told = self.collector.collect(self.rows, state)
            self._told = {f"ppo/{name}": value for name, value in told.items()}
        self._step_started = time.perf_counter()
        lengths = self.rollout.lengths
        chosen = choose(trainer.args.seed, state.rollouts, state.minibatch, batch.global_batch, lengths)
        state.minibatch += 1
        state.tokens += self.rollout.count_tokens(chosen)
        parts = deal(chosen, batch.micro, context.rank, context.world_size)
        batches = [self.rollout.batch(part, trainer.processing_class.pad_token_id) for part in parts]
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

    def measure(self) -> Metrics:
        """Of all held-out prompts; ``eval_loss`` is the score, turned round, and what the divergence costs now."""
        told = self.collector.measure(self.eval_rows)
        loss = self.run_state.kl_coef * told["kl"] - told["score"]
        named = {f"eval_{name}": value for name, value in told.items()}
        return {"eval_loss": loss, **named, "eval_prompts": len(self.eval_rows)}

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
