"""Renders an example with the chat template, then marks the tokens that carry loss."""

from dataclasses import dataclass
from typing import Any

from .formats import Conversation, Example, Message, RowError

IGNORED = -100
"""The label of a token without loss (torch's cross entropy, TRL's collator)."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """Text and the character ranges [start, end) of it that carry loss."""

    text: str
    spans: list[Span]
    add_special_tokens: bool


def render(example: Example, tokenizer: Any, loss_on: str) -> Rendered:
    """The text of ``example`` as the model will see it.

    The loss of a conversation lies on what the template adds for each assistant turn beyond the prompt that the model
    gets at inference (the conversation before, with the generation prompt), end of turn included. This needs no
    ``{% generation %}`` markers, and so works with any template.

    Raises:
        RowError: the template refuses the row, or does not let the assistant's part be told from the rest.
    """
    if not isinstance(example, Conversation):
        # No template ends this text, so the tokenizer's end of sequence does; its beginning is added by the tokenizer.
        text = example.prompt + example.completion + tokenizer.eos_token
        return Rendered(text, [(0 if loss_on == "all" else len(example.prompt), len(text))], True)
    messages = example.messages
    text = apply_template(tokenizer, messages)
    if loss_on == "all":
        return Rendered(text, [(0, len(text))], False)
    first = example.completion if loss_on == "completion" else 0
    turns = [index for index in range(first, len(messages)) if messages[index]["role"] == "assistant"]
    return Rendered(text, [_find_turn(tokenizer, text, messages, index) for index in turns], False)


def encode(rendered: list[Rendered], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """``input_ids`` and ``labels`` (``IGNORED`` where there is no loss) of each text, not truncated.

    The first token is never predicted, so it never carries loss.
    """
    pairs: list[tuple[list[int], list[int]]] = []
    if not rendered:
        return pairs
    # One call for all texts lets the tokenizer use its threads.
    encoded = tokenizer(
        [item.text for item in rendered],
        add_special_tokens=rendered[0].add_special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,  # else it warns of rows that are truncated later
    )
    for item, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        # A token belongs to the range that its last character lies in: byte-level tokenizers leave a leading space
        # out of a token's offsets, so its start tells less than its end.
        labels = [
            token if any(start < end <= stop for start, stop in item.spans) else IGNORED
            for token, (_, end) in zip(ids, offsets, strict=True)
        ]
        if labels:
            labels[0] = IGNORED
        pairs.append((ids, labels))
    return pairs


def _find_turn(tokenizer: Any, text: str, messages: list[Message], index: int) -> Span:
    """The range of ``text`` that the assistant's turn ``messages[index]`` adds to its prompt."""
    content = messages[index]["content"].strip()
    prompt = apply_template(tokenizer, messages[:index], add_generation_prompt=True)
    start = len(prompt) if text.startswith(prompt) else -1
    if start < 0:
        # Reasoning models' generation prompt opens a thought that stored answers do not have: take the answer itself.
        before = apply_template(tokenizer, messages[:index])
        start = text.find(content, len(before)) if text.startswith(before) else -1
    if start >= 0:
        if index == len(messages) - 1:
            return start, len(text)
        so_far = apply_template(tokenizer, messages[: index + 1])
        if text.startswith(so_far) and len(so_far) > start:
            return start, len(so_far)
        # Some templates render a turn otherwise once others follow (Qwen3 drops earlier thoughts).
        end = text.find(content, start)
        if end >= 0 and text.startswith(tokenizer.eos_token, end + len(content)):
            return start, end + len(content) + len(tokenizer.eos_token)
    raise RowError(
        f"turn {index + 1}",
        "the chat template renders this turn otherwise once others follow, so its tokens cannot be told from the rest;"
        " use loss_on: completion or all, or another data.chat_template",
    )


def apply_template(tokenizer: Any, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
    """The text of ``messages``.

    Raises:
        RowError: the template refuses them.
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise RowError("chat template", f"refuses the row: {error}") from error
