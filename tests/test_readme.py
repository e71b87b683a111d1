"""What the README and the other pages say is real: commands, options, links, files, make targets, keys."""

import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from launcher.cli.app import app
from launcher.contract.cluster import Cluster
from launcher.contract.paths import RunPaths
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TOP = (".ci", "benchmarks", "cluster_configs", "docs", "ds_configs", "examples", "jobs", "launcher", "slurm", "tests")
FILE = re.compile(rf"(?:{'|'.join(map(re.escape, TOP))})/[A-Za-z0-9_./-]*|[A-Za-z]+\.(?:toml|txt)|Makefile")
# A page may name these; a run or a build makes them.
NOT_IN_TREE = ("runs/",)


@dataclass(frozen=True)
class Command:
    """One command of a fenced block: the page, its words, and the output that the page shows, if any."""

    page: str
    words: tuple[str, ...]
    output: str = ""

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def _commands(page: Path) -> Iterator[Command]:
    """Commands of ``sh`` blocks (each line) and ``console`` blocks (lines behind ``$``, then their output)."""
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language not in ("sh", "console"):
            continue
        text, output = "", ""
        for line in [*re.sub(r"\\\n\s*", " ", body).splitlines(), "$ "]:
            if language == "sh" or line.startswith("$ "):
                yield from _split(page, text, output)
                text, output = line.removeprefix("$ "), ""
            else:
                output += line + "\n"


def _split(page: Path, text: str, output: str) -> Iterator[Command]:
    for part in text.split(" && "):
        if words := tuple(shlex.split(part, comments=True)):
            yield Command(page.name, words, output)


COMMANDS = [command for page in PAGES for command in _commands(page)]
OURS = [command for command in COMMANDS if command.words[0] == "tuneyard"]


def _inline(text: str) -> list[str]:
    """What stands between backticks outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_commands_to_look_at() -> None:
    assert len(OURS) > 20
    assert {command.words[1] for command in OURS} >= {"init", "plan", "submit", "status", "logs", "cancel", "collect"}
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("command", OURS, ids=str)
def test_verbs_and_options_exist(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, *arguments = command.words[1:]
    if verb == "devcluster":
        monkeypatch.syspath_prepend(str(ROOT / "slurm"))
        parser: ArgumentParser = importlib.import_module("devcluster").build_parser()
        parser.parse_args(arguments)  # exits where there is no such verb or option
    elif not verb.startswith("-"):
        group: Any = typer.main.get_command(app)
        # As the command line does it, without running the verb.
        group.commands[verb].make_context(verb, arguments, resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_in_the_text_exist(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    named = {words[1] for code in _inline(page.read_text()) if (words := code.split())[0] == "tuneyard" and words[1:]}
    assert named <= set(group.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    words = [word for code in _inline(page.read_text(encoding="utf-8")) for word in code.split()]
    words += [word for command in COMMANDS if command.page == page.name for word in command.words]
    named = {word.removeprefix("./") for word in words}
    named = {word for word in named if FILE.fullmatch(word) and not word.startswith(NOT_IN_TREE)}
    assert not {word for word in named if not (ROOT / word).exists()}


def test_make_targets_exist() -> None:
    named = {word for command in COMMANDS if command.words[0] == "make" for word in command.words[1:]}
    for page in PAGES:
        named |= {word for code in _inline(page.read_text()) if code.startswith("make ") for word in code.split()[1:]}
    named = {word for word in named if "=" not in word}
    assert named >= {"install", "demo", "test", "check"}
    assert named <= TARGETS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_shows_a_path_of_the_machine_that_it_was_written_on(page: Path) -> None:
    assert not re.search(r"/(work|tmp|root|home)/", page.read_text(encoding="utf-8"))


def test_the_spec_page_is_what_its_script_writes() -> None:
    script = _load(ROOT / "docs" / "make_spec.py")
    page = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    assert page == script.render(), "run: python docs/make_spec.py"


def test_every_key_of_a_profile_is_explained() -> None:
    text = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    explained = {key for row in rows for key in re.findall(r"`([a-z_]+)`", row)}
    assert {field.name for field in dataclasses.fields(Cluster)} <= explained


def test_the_files_of_a_run_are_those_that_its_paths_know() -> None:
    paths = RunPaths(Path())
    known = {paths.spec_source, paths.spec, paths.plan, paths.rendered, paths.code, paths.git, paths.submission}
    known |= {paths.attempt(1), paths.logs(1), paths.heartbeats, paths.ledger(1), paths.checkpoint(1, 20)}
    known |= {paths.final, paths.summary, paths.lineage}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## What is in the run directory")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {Path(name) for row in rows for name in re.findall(r"`([^`]+)`", row)} == known


def test_init_and_plan_run_as_written(tmp_path: Path) -> None:
    """In an empty folder, with the profile that the README makes by copying, and a model that needs no download."""
    profiles = tmp_path / ".config" / "tuneyard" / "clusters"
    profiles.mkdir(parents=True)
    shutil.copy(ROOT / "cluster_configs" / "h100.yaml", profiles / "mycluster.yaml")
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "TUNEYARD_DEVCLUSTER_DIR": ""}
    done: dict[tuple[str, ...], str] = {}

    def run(words: tuple[str, ...]) -> str:
        command = [sys.executable, "-m", "launcher", *words[1:]]
        result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, f"{' '.join(words)}\n{result.stderr}"
        return result.stdout

    for command in sorted(OURS, key=lambda command: command.words[1]):  # init before plan
        if command.words[1] not in ("init", "plan") or "bad.yaml" in command.words:
            continue
        if command.words not in done:
            done[command.words] = run(command.words)
        if command.output:
            assert _shape(command.output) <= _shape(done[command.words]), str(command)
    assert len(done) >= 4
    (folder,) = {path.parent for path in tmp_path.glob("runs/*-*/plan.json") if "mycluster" in path.read_text()}
    for name in ("spec.source.yaml", "spec.json", "rendered/job.sh", "rendered/rank.env", "rendered/accelerate.yaml"):
        assert (folder / name).is_file()


def _shape(output: str) -> set[str]:
    """Lines without what differs from machine to machine: paths and run ids; ``...`` stands for what was left out."""
    lines = {re.sub(r"-[0-9a-f]{6}\b", "-ID", re.sub(r"[~/]\S*", "PATH", line)) for line in output.splitlines()}
    return lines - {"..."}
