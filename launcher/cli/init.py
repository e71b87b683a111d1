"""tuneyard init: write a first experiment file."""

from pathlib import Path
from typing import Annotated

import typer


def init(
    stage: Annotated[str, typer.Argument(help="Stage: sft.")] = "sft",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("sft.yaml"),
) -> None:
    """Write a commented experiment file that runs as it stands, with its example rows beside it."""
    import shutil

    from launcher.data import find_data
    from launcher.errors import UserError

    examples = find_data("examples")
    template = examples / f"{stage}.yaml"
    if stage != "sft" or not template.is_file():
        raise UserError(f"no template for the stage {stage}\nhint: tuneyard init sft -o my.yaml")
    if output.exists():
        raise UserError(f"{output} exists already; nothing was written\nhint: choose another name with -o")
    output.parent.mkdir(parents=True, exist_ok=True)
    text = template.read_text(encoding="utf-8").replace(template.name, output.name)  # in the commands of its head
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output}")
    for name in ("triage.jsonl", "triage_eval.jsonl"):
        rows = output.parent / "data" / name
        if not rows.exists():
            rows.parent.mkdir(exist_ok=True)
            rows.write_bytes((examples / "data" / name).read_bytes())
            print(f"wrote {rows}")
    print(f"next: tuneyard plan {output}")
    if shutil.which("sbatch"):
        print("  with --cluster NAME: this machine has sbatch")
