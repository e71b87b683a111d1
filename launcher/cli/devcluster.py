"""tuneyard devcluster: a real multi-node Slurm on this machine, for development and tests."""

import typer


def devcluster(context: typer.Context) -> None:
    """Start, stop or show a development cluster: up --nodes N | down | status."""
    import subprocess
    import sys

    from launcher.data import find_data

    script = find_data("slurm") / "devcluster.py"
    raise typer.Exit(subprocess.run([sys.executable, str(script), *context.args]).returncode)
