"""Continues a run in its own directory, from its newest verified checkpoint, as a new attempt."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import launcher
from launcher.contract.attempt import read_attempts
from launcher.contract.checkpoints import list_checkpoints
from launcher.contract.files import DAMAGE
from launcher.contract.ledger import merge_metrics, read_run
from launcher.contract.lineage import list_references
from launcher.contract.manifest import read_manifest
from launcher.contract.paths import PIPELINE, RunPaths
from launcher.contract.pipeline import REFERENCE_START
from launcher.contract.plan import Plan
from launcher.contract.spec import Spec
from launcher.contract.strategies import has_fixed_world
from launcher.contract.submission import Submission
from launcher.contract.values import to_value
from launcher.errors import SpecError, UserError
from launcher.plan import make_plan
from launcher.spec import LoadedSpec, load_spec
from launcher.spec.weights import read_shapes

from .choose import choose_cluster
from .intent import claim, keep, make_intent, settle
from .prepare import refuse_foreign, render_all, resolve_cluster
from .submit import hand_over, undone_unless_handed_over

FREE_SECTIONS = ("resources", "recovery", "tracking", "cluster")
"""What may differ when a run goes on; of ``train`` the keys below."""
FREE_SCRIPT_KEYS = ("args",)
"""What an argument means is between the user and the script; the file is the copy that the run began with."""
FREE_TRAIN_KEYS = (
    "micro_batch",
    "max_steps",
    "epochs",
    "save_every_steps",
    "eval_every_steps",
    "keep_last",
    "keep_best",
    "on_nonfinite",
)


def plan_resume(
    paths: RunPaths, overrides: Sequence[str], *, cluster: str | None, together: Collection[str] = ()
) -> Plan:
    """Plan the continuation of the run in ``paths``, with ``overrides`` laid over its spec; writes nothing.

    ``together`` are the stages of its pipeline that are handed over with it.

    Raises:
        UserError: an override would make it another run, its checkpoint cannot go on with as many ranks, or there is
            nothing left to do.
    """
    before = Plan.load(paths.plan)
    refuse_foreign(paths.root.resolve(), before.run_id)
    if not paths.submission.exists():
        way = "submit its file instead" if before.group == before.run_id else f"tuneyard retry {before.group} does that"
        raise UserError(f"{before.run_id} was planned but never submitted; {way}")
    if not paths.root.as_posix().endswith(f"/{before.run_id}"):
        raise UserError(f"{paths.root}: this folder was renamed; give it back its name, {before.run_id}, to resume it")
    # The effective spec as JSON is YAML too, with every path absolute and every override in it.
    loaded = load_spec(paths.spec, overrides, copied=("script.path", "script.sources"))
    _refuse_another_run(loaded, before.spec)
    profile = before.cluster if cluster is None else resolve_cluster(choose_cluster(cluster, None))
    plan = make_plan(
        loaded,
        profile,
        run_id=before.run_id,
        runs=paths.root.parents[before.run_id.count("/")],
        version=launcher.__version__,
        shapes=read_shapes(loaded.spec, {}),
        ds_base=before.ds_base,  # as it was: the user's file may have changed or gone
        after=before.after,
    )
    _refuse_another_world_size(loaded, plan, before, paths)
    refuse_orphan(plan, paths, together)
    if paths.completion.exists():
        done = max((row["step"] for row in merge_metrics(read_run(paths))), default=0)
        length = (plan.spec.train.max_steps, plan.spec.train.epochs)
        is_no_longer = length == (before.spec.train.max_steps, before.spec.train.epochs)
        is_no_longer = is_no_longer or (length[0] or done + 1) <= done
        if is_no_longer and plan.spec.script == before.spec.script:
            change = f"train.max_steps={2 * done}" if plan.spec.script is None else "script.args='[...]'"
            raise UserError(
                f"{before.run_id} is complete at step {done}; nothing was submitted\n"
                f"hint: tuneyard resume {before.run_id} {change} goes on from there"
            )
    return plan


def refuse_orphan(plan: Plan, paths: RunPaths, together: Collection[str] = ()) -> None:
    """A stage starts only when the one before it is complete, or after it where both are handed over ``together``.

    Raises:
        UserError: it is neither.
    """
    if plan.after is None or plan.after in together or RunPaths(paths.root.parent / plan.after).completion.exists():
        return
    raise UserError(
        f"{plan.run_id}: the stage {plan.after} before it is not complete; nothing was submitted\n"
        f"hint: tuneyard retry {plan.group} runs both, when {plan.after} has ended"
    )


def list_followers(paths: RunPaths) -> list[RunPaths]:
    """The stages that were handed over to start after the complete run in ``paths``, or from a checkpoint of it, and
    are not complete; none where it is not complete itself."""
    root = paths.root.parent
    if not paths.completion.exists() or not (root / PIPELINE).is_file():
        return []
    others = [RunPaths(file.parent) for file in sorted(root.glob("*/plan.json"))]
    left = [other for other in others if other.submission.exists() and not other.completion.exists()]
    return [other for other in left if _follows(other, paths.root.name)]


def refuse_while_followed(plan: Plan, states: Mapping[str, str]) -> None:
    """A complete stage stays as it is for what starts from it: that looks for its completion record and its best or
    newest checkpoint, and does so again when it is requeued.

    ``states`` has run id -> state, with its reason, of those :func:`list_followers` that have not ended, as far as
    one knows.

    Raises:
        UserError: there is one.
    """
    if not states:
        return
    told = ", ".join(f"{run_id} is {state}" for run_id, state in states.items())
    cancel = " and ".join(f"tuneyard cancel {run_id}" for run_id in states)
    raise UserError(
        f"{plan.run_id}: what starts from it has not ended: {told}; nothing was submitted\n"
        f"hint: wait until it has ended, or first {cancel}; tuneyard retry {plan.group} runs it again"
    )


def see_submissions(stages: Sequence[RunPaths]) -> dict[RunPaths, bytes | None]:
    """The records of the last hand-overs as they stand, None where there is none: what :func:`resume` compares with.

    To be read before anybody judges that the runs have ended. A hand-over that was cut off is settled first.

    Raises:
        UserError: another command hands one over at this moment.
        ClusterError: nobody can tell what came of one that was cut off.
    """
    for paths in stages:
        if paths.intent.exists():
            settle(paths)
    return {paths: paths.submission.read_bytes() if paths.submission.exists() else None for paths in stages}


def resume(plan: Plan, paths: RunPaths, seen: bytes | None, after: str | None = None) -> Submission:
    """Hand the run over again, as ``plan`` says; what stood there stays if that fails.

    ``seen`` is its record of :func:`see_submissions`; ``after`` the Slurm job that it waits for.

    Raises:
        UserError: another command resumes it at this moment, or has done so since.
        ClusterError: the scheduler refused, or (UnsettledError) nobody knows whether it did.
    """
    number = max((attempt.number for attempt in read_attempts(paths)), default=0)
    records = [record for record in (paths.completion, paths.cancelled) if record.exists()]
    moved = [record.relative_to(paths.root).as_posix() for record in records]
    intent = make_intent(plan, number, moved)
    claim(paths, intent)
    # Looked at when it is ours: whoever asked first may have been answered last.
    if not paths.submission.exists() or paths.submission.read_bytes() != seen:
        paths.intent.unlink()
        raise UserError(f"{plan.run_id} was handed over by another command meanwhile; see tuneyard status")
    with undone_unless_handed_over(paths, intent):
        keep(paths, intent)
        render_all(plan)
        return hand_over(plan, paths, intent, None, after)


def _follows(other: RunPaths, stage: str) -> bool:
    try:
        plan = Plan.load(other.plan)
    except DAMAGE:
        return True  # as far as one knows
    references = list_references(to_value(plan.spec))
    start = f"{REFERENCE_START}.{stage}.checkpoint"
    return plan.after == stage or any(reference.startswith(start) for reference in references)


def _refuse_another_run(loaded: LoadedSpec, before: Spec) -> None:
    """What decides the weights and the order of the rows stays as it was."""
    problems = []
    for section in dataclasses.fields(Spec):
        old, new = getattr(before, section.name), getattr(loaded.spec, section.name)
        if section.name in FREE_SECTIONS or old == new:
            continue
        if not dataclasses.is_dataclass(new) or old is None:
            keys = [section.name]
        else:
            names = [field.name for field in dataclasses.fields(new)]
            keys = [
                f"{section.name}.{name}"
                for name in names
                if getattr(old, name) != getattr(new, name)
                and not (section.name == "train" and name in FREE_TRAIN_KEYS)
                and not (section.name == "script" and name in FREE_SCRIPT_KEYS)
            ]
        for key in keys:
            reason = "it would be another run"
            if key == "parallel.strategy":
                reason = f"{new.strategy} cannot go on from a checkpoint of {old.strategy}"
            message, hint = f"cannot change when a run is resumed: {reason}", "submit the file as a new run instead"
            problems.append(loaded.problem(key, message, hint))
    if problems:
        raise SpecError(problems)


def _refuse_another_world_size(loaded: LoadedSpec, plan: Plan, before: Plan, paths: RunPaths) -> None:
    """What the ranks would refuse when they have started (``jobs/checkpoint.py``), without reading the weights."""
    strategy, asked = plan.spec.parallel.strategy, plan.topology
    if not has_fixed_world(plan.spec):
        return
    manifests = (read_manifest(folder) for folder in reversed(list_checkpoints(paths)))
    newest = next((manifest for manifest in manifests if manifest is not None), None)
    if newest is None or newest.get("world_size", asked.world_size) == asked.world_size:
        return
    written = newest["world_size"]
    per_node = math.gcd(written, before.topology.ranks_per_node)
    key = "resources.nodes" if asked.nodes != before.topology.nodes else "resources.gpus_per_node"
    message = (
        f"{strategy} goes on only with as many ranks as wrote its newest checkpoint: {written} did "
        f"(step {newest['step']}), and now there would be {asked.world_size}"
    )
    hint = (
        f"set resources.nodes={written // per_node} resources.gpus_per_node={per_node}; runs with ddp or fsdp can go "
        "on with another number of ranks, and those of sft, reward and dpo with optimizer: adamw"
    )
    raise SpecError([loaded.problem(key, message, hint)])
