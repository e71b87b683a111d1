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
    from launcher.submit import prepare

    from .named import find_named

    # Before this plan has a directory, which the name could mean as well.
    other = find_named(diff, runs) if diff is not None else None
    stages = prepare(spec, overrides or [], cluster=cluster, runs=runs)
    if other is not None:
        print(_compare([stage.paths for stage in stages], other.stages), end="")
    elif as_json:
        plans = [read_json(stage.paths.plan) for stage in stages]
        is_pipeline = stages[0].plan.run_id != stages[0].plan.group
        print(json.dumps(plans if is_pipeline else plans[0], indent=2, ensure_ascii=False))
    elif script:
        sys.stdout.write("".join(stage.script for stage in stages))
    else:
        from .show import show_plan

        print("\n\n".join(show_plan(stage.plan, stage.paths) for stage in stages))


def _compare(mine: "list[RunPaths]", theirs: "list[RunPaths]") -> str:
    """The differences stage by stage, two runs alone whatever their names; then what has no counterpart."""
    if len(mine) == len(theirs) == 1:
        return _diff(mine[0], theirs[0])
    by_name = {paths.root.name: paths for paths in theirs}
    names = {paths.root.name for paths in mine}
    text = "".join(_diff(paths, by_name[paths.root.name]) for paths in mine if paths.root.name in by_name)
    text += "".join(f"only there: {_read_id(paths)}\n" for paths in theirs if paths.root.name not in names)
    return text + "".join(f"only here: {_read_id(paths)}\n" for paths in mine if paths.root.name not in by_name)


def _diff(paths: "RunPaths", other: "RunPaths") -> str:
    """Unified diff from the plan of ``other`` to that of ``paths``; empty where they are equal."""
    import difflib

    lines = difflib.unified_diff(
        other.plan.read_text(encoding="utf-8").splitlines(keepends=True),
        paths.plan.read_text(encoding="utf-8").splitlines(keepends=True),
        fromfile=_read_id(other),
        tofile=_read_id(paths),
        n=1,
    )
    return "".join(lines)


def _read_id(paths: "RunPaths") -> str:
    from launcher.observe import read_plan

    return read_plan(paths).run_id
