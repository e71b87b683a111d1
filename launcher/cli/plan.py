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
    """Plan a run, or each stage of a pipeline, and render its files; nothing is submitted."""
    import json
    import sys

    from launcher.contract.files import read_json
    from launcher.observe.find import find_stages
    from launcher.submit import prepare

    # Before this plan has a directory, which the name could mean as well.
    other = find_stages(diff, runs) if diff is not None else None
    stages = prepare(spec, overrides or [], cluster=cluster, runs=runs)
    if other is not None:
        for mine, theirs in _pair([stage.paths for stage in stages], other):
            print(_diff(mine, theirs), end="")
    elif as_json:
        plans = [read_json(stage.paths.plan) for stage in stages]
        print(json.dumps(plans[0] if len(plans) == 1 else plans, indent=2, ensure_ascii=False))
    elif script:
        sys.stdout.write("".join(stage.script for stage in stages))
    else:
        from .show import show_plan

        print("\n\n".join(show_plan(stage.plan, stage.paths) for stage in stages))


def _pair(mine: "list[RunPaths]", theirs: "list[RunPaths]") -> "list[tuple[RunPaths, RunPaths]]":
    """Stages of one name together; two single runs whatever their names."""
    if len(mine) == len(theirs) == 1:
        return [(mine[0], theirs[0])]
    named = {paths.root.name: paths for paths in theirs}
    return [(paths, named[paths.root.name]) for paths in mine if paths.root.name in named]


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
