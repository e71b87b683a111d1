"""Preference rows of every layout become pairs of examples with one prompt; bad ones are named."""

from typing import Any

import pytest

from jobs.formats import Conversation, PlainText, RowError
from jobs.preference import make_pair

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "q"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("a", "b"))
PAIR = (Conversation([USER, GOOD], 1), Conversation([USER, BAD], 1))
HUMAN = {"from": "human", "value": "q"}


def make(value: dict[str, Any], system: str | None = None, **renames: str) -> Any:
    return make_pair(value, renames, system)


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def test_each_layout() -> None:
    assert make({"prompt": "q", "chosen": "a", "rejected": "b"}) == (PlainText("q", "a"), PlainText("q", "b"))
    assert make({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}) == PAIR
    assert make({"prompt": [USER], "chosen": "a", "rejected": BAD}) == PAIR
    assert make({"chosen": [USER, GOOD], "rejected": [USER, BAD]}) == PAIR
    assert make({"conversations": [HUMAN], "chosen": gpt("a"), "rejected": gpt("b")}) == PAIR
    hh = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b\n"}
    assert make(hh) == PAIR


def test_the_ultrafeedback_layouts_whose_prompt_is_text_beside_messages() -> None:
    assert make({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}) == PAIR
    assert make({"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}) == PAIR


def test_dialogues_share_their_turns_up_to_the_answer() -> None:
    start = [USER, GOOD, USER]
    chosen, rejected = make({"chosen": [*start, GOOD], "rejected": [*start, BAD, USER, GOOD]})
    assert (chosen.completion, rejected.completion) == (3, 3)
    texts = {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q\n\nAssistant: a"}
    texts["rejected"] = texts["chosen"][:-1] + "b\n\nor: c"
    assert make(texts)[1].messages[-1]["content"] == "b\n\nor: c"


def test_the_system_prompt_counts_as_prompt() -> None:
    chosen, rejected = make({"conversations": [HUMAN], "chosen": gpt("a"), "rejected": gpt("b")}, "s")
    assert chosen == Conversation([SYSTEM, USER, GOOD], 2)
    assert rejected == Conversation([SYSTEM, USER, BAD], 2)


def test_columns_are_renamed() -> None:
    row = {"frage": "q", "gut": "a", "schlecht": "b"}
    assert make(row, prompt="frage", chosen="gut", rejected="schlecht")[0] == PlainText("q", "a")
    with pytest.raises(RowError, match="schlecht: is equal to chosen"):
        make({**row, "schlecht": "a"}, prompt="frage", chosen="gut", rejected="schlecht")


@pytest.mark.parametrize(
    ("value", "column", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, "rejected", "is missing; the row has prompt, chosen"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "chosen", "is null"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "rejected", "is empty"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt", "is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": 3}, "rejected", "is a number, not text"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt", "is a number, not text"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected", "is equal to chosen"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": 3}, "rejected", "is a number, not a list"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "chosen", "has no assistant turn"),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "chosen", "assistant after assistant"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, "rejected", "is only the beginning of chosen"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, GOOD]}, "rejected", "another prompt than chosen"),
        ({"chosen": [USER, GOOD], "rejected": "b"}, "rejected", "is text, not a list"),
        ({"conversations": [], "chosen": gpt("a"), "rejected": gpt("b")}, "conversations", "is empty"),
        ({"conversations": [HUMAN], "chosen": gpt("a"), "rejected": {"from": "gpt"}}, "rejected", '"value" is missing'),
        ({"conversations": [HUMAN], "chosen": gpt("a"), "rejected": HUMAN}, "rejected", "has no assistant turn"),
        ({"chosen": "a", "rejected": "b"}, "chosen", 'does not start with "Human:"'),
        ({"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "b"}, "chosen", "turn 2 (Assistant) is empty"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: a"},
            "rejected",
            "another prompt than chosen: turn 1 differs",
        ),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: a "},
            "rejected",
            "is equal to chosen",
        ),
    ],
)
def test_a_bad_row_names_column_and_reason(value: dict[str, Any], column: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        make(value)
    assert caught.value.column == column
    assert reason in caught.value.reason
