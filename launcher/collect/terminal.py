"""Words a run's summary for the terminal: plain text, numbers with their units."""

from typing import Any


def format_summary(summary: dict[str, Any]) -> str:
    """The text of ``tuneyard collect``; the first line is the answer."""
    first = f"{summary['run_id']} {summary['state']}"
    if summary["reason"] and summary["state"] != "completed":
        first += f": {summary['reason']}"
    facts = {
        "stage": summary["stage"],
        "steps": f"{summary['steps']} in {_count(summary['attempts'], 'attempt')}",
        "loss": _format_series(summary["loss"]),
        "eval loss": _format_series(summary["eval_loss"]),
        "tokens": None if summary["tokens"] is None else f"{summary['tokens']:,.0f}",
        "speed": None if summary["tokens_per_s"] is None else f"{summary['tokens_per_s']:,.0f} tokens/s (median)",
        "wall time": None if summary["wall_seconds"] is None else format_seconds(summary["wall_seconds"]),
        "checkpoints": _format_checkpoints(summary["checkpoints"]),
        "final": f"{_count(len(summary['final_files']), 'file')} in final/" if summary["final_files"] else None,
    }
    lines = [first, *(f"  {name:<12} {text}" for name, text in facts.items() if text)]
    lines += [f"warning: {text}" for text in summary["warnings"]]
    return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _format_series(series: dict[str, Any] | None) -> str | None:
    if series is None:
        return None
    first, last, best = series["first"], series["last"], series["best"]
    text = f"{first['value']:.4f} (step {first['step']}) -> {last['value']:.4f} (step {last['step']})"
    return text if best == last else f"{text}, best {best['value']:.4f} (step {best['step']})"


def _format_checkpoints(checkpoints: list[dict[str, Any]]) -> str | None:
    if not checkpoints:
        return None
    good = [item["path"] for item in checkpoints if item["verified"]]
    newest = f", newest {good[-1]}" if good else ""
    return f"{len(good)} of {len(checkpoints)} verified{newest}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
