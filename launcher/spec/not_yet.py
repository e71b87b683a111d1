"""What the schema has and this version cannot do yet; a version that can deletes the row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.contract.spec import Spec


@dataclass(frozen=True, kw_only=True)
class NotYet:
    """``values`` of ``key`` are refused (None: any that is not empty); ``works`` is what can be written today."""

    key: str
    values: tuple[str, ...] | None
    works: str

    def refuses(self, value: Any) -> bool:
        return bool(value) if self.values is None else value in self.values


ROWS = (
    NotYet(
        key="stage",
        values=("prepare", "pretrain", "evaluate", "export"),
        works="stage: sft, reward, dpo, ppo or script",
    ),
    NotYet(key="sweep", values=None, works="one submit per setting: tuneyard submit SPEC train.learning_rate=1e-4"),
)


def find_not_yet(spec: Spec) -> Iterator[tuple[str, str, str]]:
    """Key, message and hint of everything in ``spec`` that a later version will do."""
    for row in ROWS:
        value: Any = spec
        for name in row.key.split("."):
            value = getattr(value, name, None)  # of a section that is not there, nothing is refused
        if row.refuses(value):
            what = f"{value} is" if isinstance(value, str) and row.values else "is"
            yield row.key, f"{what} not yet in this version", f"what works today: {row.works}"
