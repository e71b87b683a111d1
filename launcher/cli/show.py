"""Puts plans and states into plain text: the answer first, numbers with units and their arithmetic."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.spec import Spec, Train

if TYPE_CHECKING:
    from launcher.observe import PipelineStatus, Status


def show_plan(plan: Plan, paths: RunPaths) -> str:
    """The plan as lines of text."""
    spec, topology, batch = plan.spec, plan.topology, plan.batch
    unit = "GPUs" if plan.cluster.accelerator == "cuda" else "CPU ranks"
    tokens = f", at most {spec.data.max_length} tokens each" if spec.data and not spec.script else ""
    rows = [
        ("run", plan.run_id if plan.after is None else f"{plan.run_id}, when {plan.after} is complete"),
        ("stage", f"{spec.stage}: {_show_work(spec)}"),
        ("cluster", f"{plan.cluster.name} ({plan.cluster.scheduler})"),
        (
            "ranks",
            f"{_count(topology.nodes, 'node')} x {topology.ranks_per_node} {unit} = {topology.world_size}, "
            f"strategy {spec.parallel.strategy}",
        ),
        (
            "batch",
            f"{batch.micro} micro x {batch.accumulation} accumulation x {topology.world_size} ranks = "
            f"{batch.global_batch} sequences per step{tokens}",
        ),
        ("length", _show_length(spec.train)),
        (
            "time",
            f"at most {topology.time_minutes} min x {topology.world_size} = {plan.gpu_hours:g} "
            f"{'GPU' if unit == 'GPUs' else 'rank'}-hours",
        ),
        ("recovery", _show_recovery(spec)),
        ("files", str(paths.root)),
    ]
    lines = [f"{name:<8} {value}" for name, value in rows]
    lines += [f"warning: {note.key}: {note.message}\n  hint: {note.remedy}" for note in plan.warnings]
    return "\n".join(lines)


def _show_work(spec: Spec) -> str:
    if spec.script is not None:
        return " ".join([Path(spec.script.path).name, *map(shlex.quote, spec.script.args)])
    if spec.model is None:
        return ""
    adapter = spec.model.adapter
    trained = "all weights" if adapter is None else f"{adapter.kind} r={adapter.r} on {adapter.target_modules}"
    return f"{spec.model.base}, {spec.model.quantization} base, {trained}"


def _show_length(train: Train) -> str:
    if train.max_steps is not None:
        return _count(train.max_steps, "step")
    return _count(train.epochs, "epoch") if train.epochs is not None else "as the script says"


def _show_recovery(spec: Spec) -> str:
    if spec.script is not None:
        start = "from the newest checkpoint that the script has made"
    elif spec.train.save_every_steps is None:
        start = "from step 0, for it saves no checkpoints"
    else:
        start = f"from a checkpoint every {_count(spec.train.save_every_steps, 'step')}"
    tried = spec.recovery.max_attempts
    if tried == 1:
        return f"{start}, after preemptions and time limits alone"
    return f"{start}; ends after {tried} failures in a row without a newer one"


def show_status(status: "Status | PipelineStatus", is_brief: bool = False) -> str:
    """One run as lines of text; a pipeline with a line for each stage. Where ``is_brief``, a reason has one line."""
    from launcher.observe import PipelineStatus

    if isinstance(status, PipelineStatus):
        lines = [f"{status.run_id}  {status.state}"]
        # Else the stage that decides has said it.
        if status.reason and not status.stages:
            lines.append(f"  reason: {status.reason}")
        width = max((len(stage.stage_name) for stage in status.stages), default=0)
        lines += [_show_run(stage, stage.stage_name.ljust(width), is_brief, "  ") for stage in status.stages]
        return "\n".join(lines)
    return _show_run(status, status.run_id, is_brief)


def _show_run(status: "Status", name: str, is_brief: bool, indent: str = "") -> str:
    steps = f"{status.step}/{status.max_steps}" if status.max_steps else str(status.step)
    job = f"job {status.job_id} on {status.cluster}" if status.job_id else status.cluster
    lines = [f"{name}  {status.state}  step {steps}  attempt {status.attempt}  {job}"]
    if status.reason:
        first, *rest = status.reason.splitlines()
        lines += [f"  reason: {first}", *(f"    {line}" for line in rest if not is_brief)]
    return indent + f"\n{indent}".join(lines)


def _count(number: float, noun: str) -> str:
    # A whole float as 3, and no exponent for any count of steps.
    return f"{number:.15g} {noun}" + ("" if number == 1 else "s")
