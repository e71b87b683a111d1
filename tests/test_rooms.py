"""The rules of who may import whom, and that the login node's code starts without the heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOW = ("spec", "cluster", "plan", "render", "submit", "observe", "collect", "cli")
"""The rooms of the launcher in the order of docs/design.md: each may read those before it."""
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "bitsandbytes", "datasets"}


def _imports(file: Path) -> set[str]:
    """Dotted names of everything that ``file`` imports anywhere in it, modules and what is taken from them; relative
    ones made absolute."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            head = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (head, node.module or "") if part)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def _files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _heads(file: Path) -> set[str]:
    return {name.split(".")[0] for name in _imports(file)}


def test_the_rules_are_looked_at_on_real_files() -> None:
    assert len(_files("launcher")) > 20
    assert len(_files("jobs")) > 8


@pytest.mark.parametrize("file", _files("launcher"), ids=lambda file: str(file.relative_to(ROOT)))
def test_launcher_imports_no_heavy_library(file: Path) -> None:
    assert not _heads(file) & HEAVY


@pytest.mark.parametrize("file", _files("launcher/contract"), ids=lambda file: file.name)
def test_the_contract_is_standard_library_only(file: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"launcher"}
    assert _heads(file) <= allowed
    assert all(name.startswith("launcher.contract") for name in _imports(file) if name.startswith("launcher"))


def test_every_room_has_its_place_in_the_flow() -> None:
    rooms = {folder.parent.name for folder in (ROOT / "launcher").glob("*/__init__.py")}
    assert rooms == {"contract", *FLOW}


@pytest.mark.parametrize("file", _files("launcher"), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_room_imports_a_later_one(file: Path) -> None:
    """Modules outside the rooms (errors, data) are below all of them; ``__main__`` is above."""
    room = file.relative_to(ROOT / "launcher").parts[0]
    if room == "__main__.py":
        return
    later = FLOW[FLOW.index(room) + 1 :] if room in FLOW else FLOW
    imported = {name.split(".")[1] for name in _imports(file) if name.startswith("launcher.")}
    assert not imported & set(later)


@pytest.mark.parametrize("file", _files("jobs"), ids=lambda file: str(file.relative_to(ROOT)))
def test_jobs_import_the_contract_and_no_other_room(file: Path) -> None:
    assert not _heads(file) & {"typer", "rich", "submitit", "wandb", "pydantic", "ruamel"}
    assert all(name.startswith("launcher.contract") for name in _imports(file) if name.split(".")[0] == "launcher")


def test_one_importer_of_submitit_and_one_of_wandb() -> None:
    def importers(library: str) -> list[str]:
        files = [file for folder in ("launcher", "jobs", "slurm") for file in _files(folder)]
        return [str(file.relative_to(ROOT)) for file in files if library in _heads(file)]

    assert importers("submitit") == ["launcher/submit/slurm.py"]
    assert all(name.startswith("launcher/collect/") for name in importers("wandb"))


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"]])
def test_the_command_line_starts_without_the_libraries_it_does_not_need(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom launcher.cli import main\n"
        f"sys.argv = ['tuneyard', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = set(ast.literal_eval(done.stderr.strip().splitlines()[-1]))
    assert "Usage" in done.stdout
    assert not loaded & (HEAVY | {"wandb", "submitit", "ruamel", "numpy"})
