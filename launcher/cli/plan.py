"""tuneyard plan: show what would run, to the byte."""

from typing import Annotated

import typer

from .options import RUNS, AsJson, ClusterName, Overrides, RunsFolder, SpecFile


def plan(
    spec: SpecFile,
    overrides: Overrides = None,
    cluster: ClusterName = None,
    script: Annotated[bool, typer.Option("--script", help="Print the job script, byte for byte.")] = False,
    diff: Annotated[str | None, typer.Option("--diff", help="Compare with a run's plan.", metavar="RUN")] = None,
    as_json: AsJson = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Plan a run and render its files; nothing is submitted."""
    import sys

    from launcher.submit import prepare

    prepared = prepare(spec, overrides or [], cluster=cluster, runs=runs)
    if diff is not None:
        print(_diff(prepared.paths.plan.read_text(), diff, runs), end="")
    elif as_json:
        print(prepared.paths.plan.read_text(encoding="utf-8"), end="")
    elif script:
        sys.stdout.write(prepared.script)
    else:
        from .show import show_plan

        print(show_plan(prepared.plan, prepared.paths))


def _diff(text: str, run: str, runs: "RunsFolder") -> str:
    """Unified diff from the plan of ``run`` to ``text``; empty where they are equal."""
    import difflib

    from launcher.observe import find_run

    other = find_run(run, runs)
    lines = difflib.unified_diff(
        other.plan.read_text(encoding="utf-8").splitlines(keepends=True),
        text.splitlines(keepends=True),
        fromfile=other.root.name,
        tofile="this plan",
        n=1,
    )
    return "".join(lines)
