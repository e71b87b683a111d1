"""Environment files: ``KEY=VALUE`` lines."""

from pathlib import Path


def format_environment(env: dict[str, str]) -> str:
    """``env`` as sorted lines.

    Raises:
        ValueError: a value holds a newline, which this format can't carry.
    """
    for name, value in env.items():
        if "\n" in value:
            raise ValueError(f"{name}: a newline in an environment variable's value")
    return "".join(f"{name}={value}\n" for name, value in sorted(env.items()))


def read_environment(path: Path) -> dict[str, str]:
    """The file as a dict.

    Raises:
        FileNotFoundError: there is none.
    """
    # Not splitlines(), which cuts at \\r and U+2028 as well.
    return dict(line.split("=", 1) for line in path.read_text(encoding="utf-8").split("\n") if "=" in line)
