"""Waits for the stage before this one, then writes down what this run is made from."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from jobs.errors import JobError
from launcher.contract.checkpoints import best_checkpoint, list_checkpoints, newest_checkpoint
from launcher.contract.files import VISIBLE_SECONDS, read_json
from launcher.contract.lineage import Lineage, Parent, list_references, read_lineage
from launcher.contract.manifest import MANIFEST, find_changes, hash_file
from launcher.contract.paths import RunPaths
from launcher.contract.pipeline import REFERENCE
from launcher.contract.plan import Plan
from launcher.contract.process import is_running
from launcher.contract.submission import Submission, read_submission
from launcher.contract.values import to_value

POLL_SECONDS = 1.0


def await_parent(paths: RunPaths, plan: Plan, is_stopped: Callable[[], bool]) -> bool:
    """Return True when the stage before this one is complete, False when this one is stopped or handed over anew first.

    Slurm starts a job only after its parent's (afterok), so there the record needs a moment at most; a local stage
    waits here for as long as its parent lives.

    Raises:
        JobError: the parent ended without its completion record.
    """
    if plan.after is None:
        return True
    parent, mine = RunPaths(paths.root.parent / plan.after), read_submission(paths)
    patience = time.monotonic() + (VISIBLE_SECONDS if plan.cluster.scheduler == "slurm" else 0)
    while not parent.completion.exists():
        if is_stopped() or _is_replaced(paths, mine):
            return False
        submission = read_submission(parent)
        is_alive = submission is not None and submission.pid and is_running(submission.pid, submission.pid_start)
        # Looked at again after its end: the record may have come in between.
        if not is_alive and time.monotonic() > patience and not parent.completion.exists():
            raise JobError(
                f"the stage {plan.after} did not complete, so this one did not start; "
                f"mend what `tuneyard status {plan.group}` says of it, then: tuneyard retry {plan.group}"
            )
        time.sleep(POLL_SECONDS)
    return not _is_replaced(paths, mine)


def _is_replaced(paths: RunPaths, mine: Submission | None) -> bool:
    """Whether the run was handed over again since ``mine``: ``tuneyard retry`` may come before this supervisor has seen
    that its parent has ended, and the parent then goes on for both."""
    now = read_submission(paths)
    return mine is not None and now is not None and now.t != mine.t


def record_lineage(paths: RunPaths, plan: Plan) -> None:
    """Write ``lineage.json``. A run that has a checkpoint stays made from what it was made from, and that must still
    be there; one that has none begins anew, from what the earlier stages have by now.

    Raises:
        JobError: an earlier stage that the spec refers to is not complete, has nothing whole to give, or no longer has
            what this run is made from.
    """
    references = list_references(to_value(plan.spec))
    has_checkpoint = any((folder / MANIFEST).is_file() for folder in list_checkpoints(paths))
    if has_checkpoint and (before := read_lineage(paths)) is not None:
        made_from = {parent.reference: parent for parent in before.parents}
        for reference in references:
            if reference in made_from:
                _check_parent(paths, made_from[reference])
        # A script's arguments may have changed.
        if new := [_find_parent(paths, reference) for reference in references if reference not in made_from]:
            replace(before, parents=[*before.parents, *new]).save(paths)
        return
    parents = [_find_parent(paths, reference) for reference in references]
    data = {str(file): hash_file(file) for file in _list_data(plan)}
    code = read_json(paths.git) or {}
    Lineage(t=time.time(), run_id=plan.run_id, parents=parents, data=data, code=code).save(paths)


def _check_parent(paths: RunPaths, parent: Parent) -> None:
    source, folder = RunPaths(paths.root.parent / parent.stage), parent.folder(paths)
    record = source.completion if folder == source.final else folder / MANIFEST
    if not record.is_file():
        fault = "is gone"
    elif hash_file(record) != parent.manifest_sha256:
        fault = "is no longer the same"
    elif changes := find_changes(folder, read_json(record)["files"]):
        fault = f"is no longer the same: {changes[0]}"
    else:
        return
    raise JobError(
        f"{parent.reference}: this run is made from {parent.path}, which {fault}; "
        "put it back, or submit the pipeline again as a new run"
    )


def _find_parent(paths: RunPaths, reference: str) -> Parent:
    match = REFERENCE.fullmatch(reference)
    assert match is not None
    stage, kind = match["stage"], match["kind"]
    parent = RunPaths(paths.root.parent / stage)
    if not parent.completion.exists():
        raise JobError(f"{reference}: the stage {stage} is not complete")
    plan = Plan.load(parent.plan)
    metric = plan.spec.train.keep_best
    if kind == "best" and metric is None:
        raise JobError(f"{reference}: the stage {stage} has train.keep_best: null, so none of its checkpoints is best")
    folder = best_checkpoint(parent, metric) if metric is not None and kind != "last" else None
    if kind == "best" and folder is None and list_checkpoints(parent):
        raise JobError(
            f"{reference}: no whole checkpoint of the stage {stage} has {metric}, its train.keep_best; "
            f"write ${{stages.{stage}.checkpoint.last}}, or keep_best: a metric that its checkpoints have"
        )
    folder = folder or newest_checkpoint(parent)
    if folder is not None:
        manifest = read_json(folder / MANIFEST)
        step, metrics, record = manifest["step"], manifest["metrics"], folder / MANIFEST
    else:
        # A stage without checkpoints (save_every_steps: null) has its final save, with a record of the same kind.
        folder, record = parent.final, parent.completion
        completion = read_json(record)
        if problems := find_changes(folder, completion["files"]):
            raise JobError(f"{reference}: no checkpoint of {stage} is whole, and its final save is not: {problems[0]}")
        step, metrics = completion["step"], completion["metrics"]
    return Parent(
        reference=reference,
        stage=stage,
        run_id=plan.run_id,
        path=f"../{folder.relative_to(paths.root.parent).as_posix()}",
        step=step,
        metrics=metrics,
        manifest_sha256=hash_file(record),
    )


def _list_data(plan: Plan) -> Iterator[Path]:
    """The local files of rows; what comes from the hub is named by the spec."""
    data = plan.spec.data
    if data is None:  # a script that reads rows of its own
        return
    train = [data.train] if isinstance(data.train, str) else data.train
    for source in [*train, *([data.eval] if isinstance(data.eval, str) else [])]:
        path = Path(source)
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            yield path
