"""Keeps the figures of the fault tests, and makes the table of docs/reliability.md of them.

    make faults        # runs every case; then: python -m tests.reliability

A test calls :func:`record` once all it asserts has held, so a row of the table is a test that passed.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "build" / "faults.jsonl"
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
COLUMNS = ("steps lost", "detect, s", "restart or requeue, s", "load, s", "first step, s")
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "submitit")


def record(case: str, injection: str, asserted: str, **figures: float | str) -> None:
    """Note that a case has passed.

    ``case`` is its number and name in the table ("1 rank killed"); ``figures`` are named as the table's columns with
    underscores (``steps_lost``, ``detect_s``, ``restart_s``, ``load_s``, ``first_step_s``), any other goes to the last
    column by its name.
    """
    RECORDS.parent.mkdir(exist_ok=True)
    row = {"case": case, "injection": injection, "asserted": asserted, "figures": figures}
    with RECORDS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def make_table(rows: list[dict]) -> str:
    """Markdown, a line per case in the order of their numbers; of a case recorded twice the newest."""
    newest = {row["case"]: row for row in rows}
    names = ("steps_lost", "detect_s", "restart_s", "load_s", "first_step_s")
    lines = [
        f"| case | injection | asserted | {' | '.join(COLUMNS)} | more |",
        "|---" * (len(COLUMNS) + 4) + "|",
    ]
    for row in sorted(newest.values(), key=lambda row: (int(row["case"].split()[0]), row["case"])):
        figures = dict(row["figures"])
        cells = [_show(figures.pop(name, "")) for name in names]
        more = ", ".join(f"{name.replace('_', ' ')} {_show(value)}" for name, value in figures.items())
        lines.append(f"| {' | '.join([row['case'], row['injection'], row['asserted'], *cells, more])} |")
    return "\n".join(lines)


def _show(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    if not RECORDS.is_file():
        print(f"{RECORDS} is not there: run `make faults` first", file=sys.stderr)
        return 2
    rows = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    commit, date = subprocess.check_output(["git", "log", "-1", "--format=%h %cs"], cwd=ROOT, text=True).split()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    text = f"{BEGIN}\nCommit {commit} of {date}; {versions}.\n\n{make_table(rows)}\n{END}"
    DOCUMENT.write_text(head + text + tail, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
