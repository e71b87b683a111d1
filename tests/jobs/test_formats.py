"""Rows of every layout become conversations; bad ones are named by column and reason."""

from typing import Any

import pytest

from jobs.formats import Conversation, PlainText, RowError, make_example

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


def make(format: str, value: dict[str, Any], system: str | None = None, **renames: str) -> Any:
    return make_example(value, format, renames, system)


def test_each_format() -> None:
    assert make("alpaca", {"instruction": "q", "input": "", "output": "a"}) == Conversation([USER, ANSWER], 1)
    assert make("alpaca", {"instruction": "q", "input": "i", "output": "a"}).messages[0]["content"] == "q\n\ni"
    history = make("alpaca", {"instruction": "q", "output": "a", "history": [["q", "a"]], "system": "s"})
    assert history == Conversation([SYSTEM, USER, ANSWER, USER, ANSWER], 4)
    assert make("messages", {"messages": [USER, ANSWER]}, "s") == Conversation([SYSTEM, USER, ANSWER], 2)
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert make("sharegpt", {"conversations": turns, "system": "s"}, "t").messages == [SYSTEM, USER, ANSWER]
    assert make("prompt-completion", {"prompt": "q", "completion": "a"}) == PlainText("q", "a")
    pair = {"prompt": [USER], "completion": [ANSWER]}
    assert make("prompt-completion", pair, "s") == Conversation([SYSTEM, USER, ANSWER], 2)
    assert make("text", {"body": "t"}, text="body") == PlainText("", "t")


def test_a_rows_own_system_prompt_comes_before_the_specs() -> None:
    assert make("messages", {"messages": [SYSTEM, USER, ANSWER]}, "t").messages[0] == SYSTEM


@pytest.mark.parametrize(
    ("format", "value", "column", "reason"),
    [
        ("alpaca", {"instruction": "q"}, "output", "is missing; the row has instruction"),
        ("alpaca", {"instruction": "q", "output": None}, "output", "is null"),
        ("alpaca", {"instruction": "q", "output": " \n"}, "output", "is empty"),
        ("alpaca", {"instruction": "q", "output": 3}, "output", "is a number, not text"),
        ("alpaca", {"instruction": "", "output": "a"}, "instruction", "is empty"),
        ("alpaca", {"instruction": "q", "output": "a", "history": [["q"]]}, "history", "is not a list of"),
        ("messages", {"messages": "hi"}, "messages", "is text, not a list of turns"),
        ("messages", {"messages": []}, "messages", "is empty"),
        ("messages", {"messages": [USER, "a"]}, "messages", "turn 2 is text, not an object"),
        ("messages", {"messages": [USER, {"role": "assistant"}]}, "messages", 'turn 2: "content" is missing'),
        ("messages", {"messages": [USER, {"role": "bot", "content": "a"}]}, "messages", 'unknown role "bot"'),
        ("messages", {"messages": [USER, {**ANSWER, "content": ""}]}, "messages", 'turn 2: "content" is empty'),
        ("messages", {"messages": [USER]}, "messages", "has no assistant turn"),
        ("messages", {"messages": [ANSWER, USER]}, "messages", "starts with the assistant's turn"),
        ("messages", {"messages": [USER, USER, ANSWER]}, "messages", "user after user"),
        ("messages", {"messages": [USER, ANSWER, USER]}, "messages", "ends with the user's turn"),
        ("messages", {"messages": [USER, SYSTEM, ANSWER]}, "messages", "system after user"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "conversations", '"value" is missing'),
        ("prompt-completion", {"prompt": "q", "completion": ""}, "completion", "is empty"),
        ("prompt-completion", {"prompt": [USER], "completion": "a"}, "completion", "is text, not a list"),
        ("text", {"text": ""}, "text", "is empty"),
    ],
)
def test_a_bad_row_names_column_and_reason(format: str, value: dict[str, Any], column: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        make(format, value)
    assert caught.value.column == column
    assert reason in caught.value.reason


def test_errors_speak_of_the_files_own_columns() -> None:
    with pytest.raises(RowError, match="antwort: is empty"):
        make("alpaca", {"instruction": "q", "antwort": ""}, output="antwort")
