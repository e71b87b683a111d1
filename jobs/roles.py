"""The roles of ppo on one base: policy, reference, critic and reward are adapters and heads of a single model.

The policy is the adapter that is trained. The reference is what it started from: a frozen copy of a stored adapter, or
the base alone. The critic has an adapter and a value head of its own, or a head on the policy's trunk. The reward,
where it is an adapter on the same base, is that adapter, frozen, and its score head.

All forward passes of a step go through the wrapped model in one call (:meth:`Roles.install`), because DDP, FSDP2 and
DeepSpeed expect one before each backward pass.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .adapter import WEIGHTS
from .reference import REFERENCE
from .score import make_head

if TYPE_CHECKING:
    import torch

POLICY, CRITIC, REWARD = "default", "critic", "reward"
"""Names of the adapters; peft's name for the first one is the one that is saved."""
Role = Literal["policy", "reference", "critic", "reward"]
VALUE_HEAD = "value_head"


class Roles:
    """The roles that ``model`` (a peft model, its policy trained) plays; made before it is wrapped.

    ``reward``: the folder of a reward run's adapter on the same base, or None. ``is_base``: the policy starts from the
    base itself, and so is a fresh adapter that changes nothing. Trained adapters are kept in ``dtype``, frozen ones in
    ``frozen_dtype``: that of the multiplication, to which they would be rounded at each use.
    """

    def __init__(
        self,
        model: Any,
        *,
        critic: str,
        reward: Path | None,
        is_base: bool,
        dtype: "torch.dtype",
        frozen_dtype: "torch.dtype",
    ) -> None:
        import torch
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.model = model
        self.base = model.get_base_model()
        self.has_reward = reward is not None
        names = {"policy": POLICY, "reference": None if is_base else REFERENCE, "reward": REWARD, "critic": POLICY}
        if not is_base:
            self._add_copy(REFERENCE, POLICY)
        head = None
        if reward is not None:
            head = self._add_reward(reward)
        if critic == "own":
            # A critic begins best as a model of rewards (arXiv:2403.17031); without one, as the policy.
            self._add_copy(CRITIC, REWARD if reward is not None else POLICY)
            names["critic"] = CRITIC
        is_rewarding = critic == "own" and head is not None
        start = head.clone() if is_rewarding and head is not None else torch.zeros(1, self._hidden_size())
        self.base.value_head = make_head(torch.nn.Parameter(start.to(device=self.base.device, dtype=dtype)))
        if head is not None:
            frozen = torch.nn.Parameter(head.to(self.base.device), requires_grad=False)
            self.base.reward_head = make_head(frozen)
        self._adapters: dict[Role, list[str]] = {role: [name] if name else [] for role, name in names.items()}  # type: ignore[misc]
        trained = {POLICY, *([CRITIC] if critic == "own" else [])}
        for name, weight in model.named_parameters():
            is_trained = any(f".{adapter}." in name for adapter in trained) or f".{VALUE_HEAD}." in name
            weight.requires_grad_(is_trained)
            if is_trained or ".lora_" in name:
                weight.data = weight.data.to(dtype if is_trained else frozen_dtype)
        self.is_shared = critic == "shared"
        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        self._activate([POLICY])

    def install(self, temperature: float) -> None:
        """Let ``model(roles=(...), ...)`` play several roles in one call; other calls stay what they were.

        With ``input_ids``, ``attention_mask`` and ``labels`` (-100 where nothing is asked), each int64 of shape (batch,
        tokens), the call gives a dict: ``log_probs`` and ``entropy`` of the policy and ``reference_log_probs``, of the
        distribution at ``temperature``, and ``values``, all (batch, tokens - 1), the place before a token being that
        token's; ``rewards`` (batch,), the reward's score of each whole sequence. Padding stands on the right.
        """
        from trl.trainer.utils import add_fused_lm_head

        # It never holds the logits of all tokens at once.
        add_fused_lm_head(self.base, temperature, outputs=("log_probs", "entropy"))
        inner: Callable[..., Any] = self.base.forward

        def forward(*args: Any, roles: tuple[Role, ...] | None = None, **kwargs: Any) -> Any:
            return inner(*args, **kwargs) if roles is None else self._play(inner, roles, **kwargs)

        self.base.forward = forward

    def keep_role(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For gradient checkpointing (torch's ``context_fn``): a layer is computed again as the role that it was."""
        return nullcontext(), self._use(list(self._active))

    def trained(self, *, critic: bool) -> "list[torch.nn.Parameter]":
        """The trained parameters of the critic, or of the policy."""
        named = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        return [weight for name, weight in named if (f".{POLICY}." not in name) == critic]

    def _play(self, inner: Callable[..., Any], roles: tuple[Role, ...], **inputs: Any) -> "dict[str, torch.Tensor]":
        told: dict[str, torch.Tensor] = {}
        for name in ("output_hidden_states", "output_attentions", "return_dict", "inputs_embeds"):
            inputs.pop(name, None)  # peft's
        labels = inputs.pop("labels", None)
        if "policy" in roles:
            with self._use(self._adapters["policy"]):
                told["log_probs"], told["entropy"], states = self._score(inner, labels, **inputs)
            if self.is_shared and "critic" in roles:
                told["values"] = self.base.value_head(states[:, :-1]).squeeze(-1)
        if "reference" in roles:
            with self._use(self._adapters["reference"]):
                told["reference_log_probs"], _, _ = self._score(inner, labels, **inputs)
        if "critic" in roles and "values" not in told:
            with self._use(self._adapters["critic"]):
                hidden = self.base.base_model(use_cache=False, **inputs).last_hidden_state
            told["values"] = self.base.value_head(hidden[:, :-1]).squeeze(-1)
        if "reward" in roles:
            with self._use(self._adapters["reward"]):
                hidden = self.base.base_model(use_cache=False, **inputs).last_hidden_state
            last = inputs["attention_mask"].sum(1) - 1
            told["rewards"] = self.base.reward_head(hidden[range(len(last)), last]).squeeze(-1)
        return told

    def _score(
        self, inner: Callable[..., Any], labels: "torch.Tensor", **inputs: Any
    ) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Log-probabilities and entropy, (batch, tokens - 1), of the active adapter, and its last hidden states.

        The head sees the places before asked tokens alone: without Triton TRL 1.16 would multiply all of them, which is
        most of a step with a small model and long prompts.
        """
        places = labels[:, 1:] != -100
        states: list[torch.Tensor] = []

        def keep_asked(module: Any, args: Any, output: Any) -> Any:
            states.append(output.last_hidden_state)
            output.last_hidden_state = output.last_hidden_state[:, :-1][places][None]
            return output

        handle = self.base.base_model.register_forward_hook(keep_asked)
        try:
            # Labels that are not shifted once more.
            outputs = inner(shift_labels=labels[:, 1:][places][None], fused_lm_head=True, **inputs)
        finally:
            handle.remove()
        log_probs, entropy = (
            told.new_zeros(places.shape).masked_scatter(places, told) for told in (outputs.log_probs, outputs.entropy)
        )
        return log_probs, entropy, states[0]

    @contextmanager
    def _use(self, adapters: list[str]) -> Iterator[None]:
        before = self._active
        self._activate(adapters)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, adapters: list[str]) -> None:
        # Not by peft's switches: they also set requires_grad, on which FSDP2, DDP and DeepSpeed have long decided.
        self._active = adapters
        for layer in self._layers:
            layer._active_adapter = adapters

    def _add_copy(self, name: str, of: str) -> None:
        """A new adapter with the configuration and weights of another."""
        self.model.add_adapter(name, copy.deepcopy(self.model.peft_config[of]), autocast_adapter_dtype=False)
        weights = dict(self.model.named_parameters())
        for other, weight in weights.items():
            if f".{of}." in other:
                weights[other.replace(f".{of}.", f".{name}.")].data.copy_(weight.data)

    def _add_reward(self, folder: Path) -> "torch.Tensor":
        """A stored reward adapter; returns its score head, (1, hidden size)."""
        from peft import LoraConfig, set_peft_model_state_dict
        from safetensors.torch import load_file

        config: Any = LoraConfig.from_pretrained(str(folder))
        config.modules_to_save, config.task_type = None, "CAUSAL_LM"
        self.model.add_adapter(REWARD, config, autocast_adapter_dtype=False)
        stored = load_file(folder / WEIGHTS)
        (head,) = (stored.pop(name) for name in list(stored) if name.endswith("score.weight"))
        set_peft_model_state_dict(self.model, stored, adapter_name=REWARD)
        return head

    def _hidden_size(self) -> int:
        return int(self.base.config.get_text_config().hidden_size)
