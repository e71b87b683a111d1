"""The loss lies on the assistant's tokens, with templates of several kinds and without generation markers."""

from typing import Any

import pytest

from jobs.formats import Conversation, PlainText, RowError
from jobs.masking import IGNORED, encode, render
from jobs.tiny import make_tokenizer

TURNS = [
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "Größe 🙂"},
]
CONVERSATION = Conversation(TURNS, 3)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no system prompt') }}{% endif %}{% endfor %}"
)
"""Mistral's kind: no generation prompt, no header, refuses a system prompt."""
THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think></think>"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen3's kind: an earlier answer is rendered without its thought."""
OPEN_THINK = THINK.replace("<think></think>", "").replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
"""DeepSeek's kind: the generation prompt opens a thought."""
UNSTABLE = "{% for m in messages %}{{ loop.length }}{{ m.role }}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def learned(tokenizer: Any, example: Any, loss_on: str = "assistant") -> str:
    ((ids, labels),) = encode([render(example, tokenizer, loss_on)], tokenizer)
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    runs, before = [], False
    for token, label in zip(ids, labels, strict=True):
        if label != IGNORED:
            runs.append([token]) if not before else runs[-1].append(token)
        before = label != IGNORED
    return "|".join(tokenizer.decode(run) for run in runs)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "a1<|im_end|>\n|Größe 🙂<|im_end|>\n"),
        (INST, " a1<|im_end|>| Größe 🙂<|im_end|>"),
        (THINK, "a1<|im_end|>|<think></think>Größe 🙂<|im_end|>\n"),
        (OPEN_THINK, "a1<|im_end|>\n|Größe 🙂<|im_end|>\n"),
    ],
    ids=["chatml", "inst", "think", "open-think"],
)
def test_assistant_turns_with_their_end_are_learned(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str | None, expected: str
) -> None:
    if template is not None:
        monkeypatch.setattr(tokenizer, "chat_template", template)
    assert learned(tokenizer, CONVERSATION) == expected


def test_loss_on_the_completion_or_on_all(tokenizer: Any) -> None:
    assert learned(tokenizer, CONVERSATION, "completion") == "Größe 🙂<|im_end|>\n"
    everything = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert "<|im_start|>" + learned(tokenizer, CONVERSATION, "all") == everything  # the first token is never predicted


def test_plain_text_ends_in_the_end_of_sequence(tokenizer: Any) -> None:
    assert learned(tokenizer, PlainText("q: ", "a")) == "a<|im_end|>"
    assert learned(tokenizer, PlainText("q: ", "a"), "all") == ": a<|im_end|>"
    assert learned(tokenizer, PlainText("", "text")) == "ext<|im_end|>"


def test_a_row_that_the_template_refuses_is_bad(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", INST)
    with pytest.raises(RowError, match="refuses the row: no system prompt"):
        render(Conversation([{"role": "system", "content": "s"}, *TURNS], 4), tokenizer, "assistant")


def test_a_template_that_hides_where_a_turn_is_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", UNSTABLE)
    with pytest.raises(RowError, match="cannot be told from the rest"):
        render(CONVERSATION, tokenizer, "assistant")
    assert render(CONVERSATION, tokenizer, "all").spans


def test_a_leading_space_belongs_to_the_answer() -> None:
    """GPT-2's kind of tokenizer leaves the space of " yes" out of the token's offsets."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["Ġy", "es", "Ġyes"]
    vocab = {piece: index for index, piece in enumerate([*alphabet, *pieces, "<eos>"])}
    model = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "y"), ("e", "s"), ("Ġy", "es")]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")
    ((ids, labels),) = encode([render(PlainText("q", " yes"), tokenizer, "assistant")], tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == ["q", "Ġyes", "<eos>"]
    assert labels == [IGNORED, *ids[1:]]
