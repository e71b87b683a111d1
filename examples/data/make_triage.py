"""Writes triage.jsonl and triage_eval.jsonl: short customer messages and the one line that sorts them. Beside each of
them, triage_pairs.jsonl and triage_pairs_eval.jsonl: the same messages, each with its line and a wrong one.

    python examples/data/make_triage.py [FOLDER]     # default: beside this file; the same bytes on every machine

The assistant's line is ``team: T | urgency: U | ask: A``. Each topic (triage_topics.txt) has four wordings for training
and one, never trained on, for the held-out file; what a customer adds about the hurry sets the urgency, and its
held-out phrases are others too. So the held-out loss falls only if the model reads new messages. A rejected line is
wrong in one of its three fields, so that only a model that reads the message can tell. All text was written
for this project, is about nobody, and is under the project's licence (Apache-2.0).
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 7
ROWS_PER_WORDING = 3
NUM_EVAL = 40
TOPICS = Path(__file__).with_name("triage_topics.txt")


def _lists(text: str, separator: str) -> dict[str, list[str]]:
    """``name: member, member`` lines as a dict."""
    pairs = (line.split(": ", 1) for line in text.strip().splitlines())
    return {name: members.split(separator) for name, members in pairs}


SLOTS = _lists(
    """
item: kettle, lamp, blender, backpack, toaster, heater, rug, keyboard, tent, grinder, pump, shelf, mirror, speaker
device: kettle, blender, toaster, heater, grinder, pump, vacuum, fan
smart: camera, printer, speaker, thermostat, scale, doorbell
color: black, white, green, grey, red, blue
day: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday
month: January, March, April, May, June, August, October, November
num: two, three, four, five, six, eight, ten
amount: $12, $19, $27, $35, $48, $60, $85, $120
""",
    ", ",
)
GREETINGS = ["", "", "", "Hi, ", "Hello, ", "Hi there, ", "Good morning, "]
# What a customer adds says how urgent it is; most say nothing where it is normal.
HURRY = {
    "high": [
        "I need this sorted today.",
        "This is urgent.",
        "We are losing money over this.",
        "Please hurry.",
        "I need an answer within the hour.",
        "It cannot wait until tomorrow.",
        "Please call me back right now.",
        "As soon as possible, please!",
        "I must have this settled before tonight.",
        "This is an emergency for us.",
    ],
    "normal": ["", "", "", "Please help.", "Please look into it.", "Thanks for your help.", "Thank you."],
    "low": [
        "No rush.",
        "There is no hurry.",
        "Whenever you have time.",
        "It can wait until next week.",
        "Nothing urgent.",
        "Take your time.",
        "Any time this month is fine.",
        "It is only a small thing.",
        "Answer when it suits you.",
        "Not a priority.",
    ],
}
HURRY_EVAL = {
    "high": ["We need help right now.", "Please treat this as urgent.", "I can't wait any longer, it must be today."],
    "normal": ["", "Please let me know.", "Thanks."],
    "low": ["I am in no hurry.", "When you get a moment.", "It is not urgent at all."],
}


@dataclass(frozen=True)
class Topic:
    """One thing customers write about; the last of ``wordings`` is held out."""

    team: str
    levels: tuple[str, ...]
    ask: str
    wordings: tuple[str, ...]

    @property
    def is_always_high(self) -> bool:
        """What is dangerous or stops everybody is urgent by itself, so nothing about the hurry is added."""
        return self.levels == ("high",)


def read_topics(path: Path = TOPICS) -> list[Topic]:
    """The topics of ``path``: a head line, then its wordings indented."""
    heads: list[tuple[str, list[str]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            heads[-1][1].append(line.strip())
        elif line and not line.startswith("#"):
            heads.append((line, []))
    topics = []
    for head, wordings in heads:
        team, levels, ask = head.split(" | ")
        topics.append(Topic(team, tuple(levels.split()), ask, tuple(wordings)))
    return topics


def make_rows(seed: int = SEED) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training rows and the held-out rows, in ``messages`` format; the same for the same seed."""
    rng = random.Random(seed)
    topics = read_topics()
    seen: set[str] = set()
    train = []
    for topic in topics:
        wordings = [wording for wording in topic.wordings[:-1] for _ in range(ROWS_PER_WORDING)]
        levels = [topic.levels[number % len(topic.levels)] for number in range(len(wordings))]
        rng.shuffle(levels)
        train += [_row(rng, topic, *pair, HURRY, seen) for pair in zip(wordings, levels, strict=True)]
    rng.shuffle(train)
    held_out = []
    for number in range(NUM_EVAL):
        topic = topics[number % len(topics)]
        level = topic.levels[number % len(topic.levels)]
        held_out.append(_row(rng, topic, topic.wordings[-1], level, HURRY_EVAL, seen))
    rng.shuffle(held_out)
    return train, held_out


def _row(
    rng: random.Random, topic: Topic, wording: str, level: str, hurry: dict[str, list[str]], seen: set[str]
) -> dict[str, Any]:
    """One row whose message is not in ``seen`` yet."""
    while True:
        body = rng.choice(GREETINGS) + wording.format(**{slot: rng.choice(words) for slot, words in SLOTS.items()})
        added = "" if topic.is_always_high else rng.choice(hurry[level])
        message = f"{body[0].upper()}{body[1:]} {added}".strip()
        if message not in seen:
            break
    seen.add(message)
    line = f"team: {topic.team} | urgency: {level} | ask: {topic.ask}"
    return {"messages": [{"role": "user", "content": message}, {"role": "assistant", "content": line}]}


def make_pairs(rows: list[dict[str, Any]], seed: int = SEED) -> list[dict[str, Any]]:
    """``rows`` as preference pairs: the rejected line differs in the team, the urgency or the ask, in turn."""
    rng = random.Random(seed)
    topics = read_topics()
    values = {
        "team": sorted({topic.team for topic in topics}),
        "urgency": sorted(HURRY),
        "ask": sorted({topic.ask for topic in topics}),
    }
    pairs = []
    for number, row in enumerate(rows):
        prompt, answer = row["messages"]
        fields = dict(part.split(": ", 1) for part in answer["content"].split(" | "))
        wrong = tuple(values)[number % len(values)]
        fields[wrong] = rng.choice([value for value in values[wrong] if value != fields[wrong]])
        rejected = " | ".join(f"{name}: {value}" for name, value in fields.items())
        pairs.append({"prompt": [prompt], "chosen": [answer], "rejected": [{**answer, "content": rejected}]})
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the triage rows and pairs.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().folder
    train, held_out = make_rows()
    files = {"triage.jsonl": train, "triage_eval.jsonl": held_out}
    files |= {"triage_pairs.jsonl": make_pairs(train), "triage_pairs_eval.jsonl": make_pairs(held_out)}
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
        print(f"{folder / name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
