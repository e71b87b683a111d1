"""tuneyard plan: show what would run, to the byte."""

from typing import TYPE_CHECKING, Annotated

import typer

from .options import RUNS, AsJson, ClusterName, Overrides, RunsFolder, SpecFile

if TYPE_CHECKING:
    from launcher.contract.paths import RunPaths


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

    from launcher.observe.find import find_run
    from launcher.submit import prepare

    # Before this plan has a directory, which the name could mean as well.
    other = find_run(diff, runs) if diff is not None else None
    prepared = prepare(spec, overrides or [], cluster=cluster, runs=runs)
    if other is not None:
        print(_diff(prepared.paths, other), end="")
    elif as_json:
        print(prepared.paths.plan.read_text(encoding="utf-8"), end="")
    elif script:
        sys.stdout.write(prepared.script)
    else:
        from .show import show_plan

        print(show_plan(prepared.plan, prepared.paths))


def _diff(paths: "RunPaths", other: "RunPaths") -> str:
    """Unified diff from the plan of ``other`` to that of ``paths``; empty where they are equal."""
    import difflib

    lines = difflib.unified_diff(
        other.plan.read_text(encoding="utf-8").splitlines(keepends=True),
        paths.plan.read_text(encoding="utf-8").splitlines(keepends=True),
        fromfile=other.root.name,
        tofile=paths.root.name,
        n=1,
    )
    return "".join(lines)
