"""Puts the verbs together."""

from typing import Annotated

import typer

from launcher import __version__

from . import cancel, collect, devcluster, init, logs, plan, resume, retry, status, submit, sync

app = typer.Typer(
    name="tuneyard",
    help="Launch the fine-tuning of large models on Slurm clusters: one YAML file to a finished run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, in a third of the time
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"tuneyard {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]


@app.callback()
def _root(version: Version = False) -> None:
    """Launch the fine-tuning of large models on Slurm clusters: one YAML file to a finished run."""


app.command(name="init")(init.init)
app.command(name="plan")(plan.plan)
app.command(name="submit")(submit.submit)
app.command(name="status")(status.status)
app.command(name="logs")(logs.logs)
app.command(name="cancel")(cancel.cancel)
app.command(name="resume")(resume.resume)
# It says itself which command takes changes.
app.command(name="retry", context_settings={"allow_extra_args": True})(retry.retry)
app.command(name="collect")(collect.collect)
app.command(name="sync")(sync.sync)
# Its arguments, --help too, are the script's own.
_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
app.command(name="devcluster", context_settings=_PASS_THROUGH)(devcluster.devcluster)
