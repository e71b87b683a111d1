"""Writes docs/spec.md from the classes that a spec is checked against, so that the page cannot drift.

    python docs/make_spec.py

A test (tests/test_readme.py) compares the page with what this writes.
"""

import dataclasses
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from launcher.contract.spec import Spec
from launcher.contract.strategies import LEGAL_OFFLOAD
from launcher.spec.durations import MAX_DAYS
from launcher.spec.not_yet import ROWS
from launcher.spec.schema import describe, section_of

PAGE = Path(__file__).with_name("spec.md")

HEAD = f"""\
<!-- Written by docs/make_spec.py; change launcher/contract/spec.py instead, then run: python docs/make_spec.py -->
# The experiment file, key by key

A spec is one YAML 1.2 file. A short one:

```yaml
name: my-first
stage: sft
model: {{base: builtin:tiny}}
data: {{train: data/triage.jsonl, format: messages}}
train: {{max_steps: 20}}
```

* **Required** are the keys whose default says so. Every stage but `script` also needs the sections `model` and `data`,
  and one of `train.max_steps` and `train.epochs`; [own-script.md](own-script.md) is about the stage `script`.
* An unknown key is an error, not ignored. All problems of a file are reported at once, each as
  `file:line:col: key: what`, with a hint; the exit code is 2 and nothing is submitted.
* **Overrides** follow the file on the command line: `train.max_steps=100 resources.nodes=4`. They are typed by this
  schema; `null` clears a value. The last one wins.
* **Environment**: `${{env:NAME}}` and `${{env:NAME:-default}}` are replaced when the file is read. Do not put
  tokens into a spec in this way: the result is written to the run directory.
* **Paths** in the file are relative to the file's folder; paths in an override to the current folder.
* **Durations** are `90s`, `30m`, `4h`, `1.5d`, `1:30:00` (hours, minutes, seconds) or `2-12:00:00` (days first);
  they are rounded up to minutes, and {MAX_DAYS} days is the longest.
* `train.global_batch` must be a whole multiple of `train.micro_batch` x nodes x ranks per node; the quotient is the
  gradient accumulation.
"""

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")


def render() -> str:
    """The whole page."""
    offload = "; ".join(f"`{strategy}`: {', '.join(modes)}" for strategy, modes in LEGAL_OFFLOAD.items())
    parts = [HEAD, f"* What `parallel.offload` can be under each strategy: {offload}.\n"]
    for name, section in _sections(Spec, ""):
        parts += ["\n", _section(name, section)]
    return "".join(parts)


def _sections(cls: type, name: str) -> Iterator[tuple[str, type]]:
    yield name, cls
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if section := section_of(hints[field.name]):
            yield from _sections(section, f"{name}.{field.name}".lstrip("."))


def _section(name: str, cls: type) -> str:
    hints = typing.get_type_hints(cls)
    lines = [
        f"## {name or 'The top level'}",
        "",
        f"{(cls.__doc__ or '').strip()}",
        "",
        "| key | takes | default | bounds | |",
        "|---|---|---|---|---|",
    ]
    for field in dataclasses.fields(cls):
        key = f"{name}.{field.name}".lstrip(".")
        section = section_of(hints[field.name])
        help = field.metadata.get("description") or (section.__doc__ if section else "")
        cells = (
            f"`{key}`",
            describe(hints[field.name]),
            _default(field, has_section=section is not None),
            _bounds(field.metadata),
            " ".join(filter(None, [help, _not_yet(key)])),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(field: "dataclasses.Field[Any]", *, has_section: bool) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    if field.default is dataclasses.MISSING:
        return "required"
    if has_section and field.default is not None:
        return "the section's defaults"
    words = {True: "true", False: "false", None: "null"}
    is_word = field.default is None or isinstance(field.default, bool)
    return f"`{words[field.default] if is_word else field.default}`"


def _bounds(metadata: Any) -> str:
    found = [f"{sign} {metadata[name]}" for name, sign in BOUNDS.items() if name in metadata]
    if metadata.get("min_length"):
        found.append("not empty")
    if "pattern" in metadata:
        found.append(f"`{metadata['pattern']}`")
    return ", ".join(found)


def _not_yet(key: str) -> str:
    """What this version refuses of ``key``."""
    row = next((row for row in ROWS if row.key == key), None)
    if row is None:
        return ""
    if row.values is None:
        return "**Not yet**: must be left out."
    return f"**Not yet**: {', '.join(f'`{value}`' for value in row.values)}."


if __name__ == "__main__":
    main()
