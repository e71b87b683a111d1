"""What the roles say of a sequence, against the plain model."""

import torch
from peft import LoraConfig, get_peft_model

from jobs.roles import Roles
from jobs.rollout import Rollout
from jobs.tiny import make_model, make_tokenizer

TEMPERATURE = 0.3


def test_log_probabilities_and_entropy_are_of_the_distribution_that_tokens_are_sampled_from() -> None:
    """:func:`jobs.generate.sample` divides the plain model's logits by the same temperature."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(make_model(), config).eval()
    roles = Roles(model, critic="own", reward=None, is_base=True, dtype=torch.float32, frozen_dtype=torch.float32)
    roles.install(TEMPERATURE)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if ".lora_B.default." in name:
            weight.data.normal_(0, 0.1)
    batch = Rollout([[40, 41], [42, 43, 44]], [[45, 46, 47], [48]]).batch([0, 1], make_tokenizer().pad_token_id)
    inputs, asked = {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"][:, 1:] != -100
    with torch.no_grad():
        told = model(**batch, roles=("policy", "reference"))
        policy = (model(**inputs).logits[:, :-1] / TEMPERATURE).log_softmax(-1)
        with model.disable_adapter():
            reference = (model(**inputs).logits[:, :-1] / TEMPERATURE).log_softmax(-1)
    chosen = batch["input_ids"][:, 1:, None]
    for found, expected in (
        (told["log_probs"], policy.gather(2, chosen)[..., 0]),
        (told["reference_log_probs"], reference.gather(2, chosen)[..., 0]),
        (told["entropy"], -(policy.exp() * policy).sum(-1)),
    ):
        assert torch.allclose(found[asked], expected[asked], atol=1e-4)
        assert not found[~asked].any()
    assert not torch.allclose(told["log_probs"][asked], told["reference_log_probs"][asked], atol=1e-2)
