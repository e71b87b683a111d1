"""Arguments that several verbs take."""

from pathlib import Path
from typing import Annotated

import typer

SpecFile = Annotated[Path, typer.Argument(help="The experiment's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes, such as train.max_steps=100.", metavar="[A.B=VALUE]...")
]
ClusterName = Annotated[
    str | None, typer.Option("--cluster", "-c", help="Cluster profile: a name or a file.", show_default=False)
]
RunsFolder = Annotated[
    Path, typer.Option("--runs", envvar="TUNEYARD_RUNS", help="Folder that holds the run directories.")
]
RunName = Annotated[
    str, typer.Argument(help="Run id, unique prefix, name, directory, last, last-1.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Follow the run; Ctrl-C leaves it running.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however many GPU-hours it may take.")]

RUNS = Path("runs")
