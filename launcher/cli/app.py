"""Puts the verbs together."""

import typer

from . import cancel, collect, devcluster, init, logs, plan, resume, status, submit, sync

app = typer.Typer(
    name="tuneyard",
    help="Launch the fine-tuning of large models on Slurm clusters: one YAML file to a finished run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, in a third of the time
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(name="init")(init.init)
app.command(name="plan")(plan.plan)
app.command(name="submit")(submit.submit)
app.command(name="status")(status.status)
app.command(name="logs")(logs.logs)
app.command(name="cancel")(cancel.cancel)
app.command(name="resume")(resume.resume)
app.command(name="collect")(collect.collect)
app.command(name="sync")(sync.sync)
# Its arguments, --help too, are the script's own.
_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
app.command(name="devcluster", context_settings=_PASS_THROUGH)(devcluster.devcluster)
