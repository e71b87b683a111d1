"""What is copied of a script's folder: all that it may need, nothing that is not code, and nothing from elsewhere."""

from pathlib import Path

import pytest

from launcher.contract.spec import Script
from launcher.errors import UserError
from launcher.submit import sources
from launcher.submit.sources import copy_sources, find_sources
from tests.conftest import Tuneyard


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = ["train.py", "it's a module.py", "package/__init__.py", "package/data.json", "package/runs.py"]
    left_out = [".git/config", ".env", "__pycache__/a.pyc", "package/__pycache__/b.pyc", "runs/x/plan.json"]
    left_out += ["myenv/pyvenv.cfg", "myenv/lib/x.py", "elsewhere/y/plan.json", "wandb/run/x"]
    for name in [*files, *left_out]:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "project"


def _script(project: Path) -> Script:
    return Script(path=str(project / "train.py"))


def test_the_folder_is_copied_without_what_is_no_code(project: Path, tmp_path: Path) -> None:
    (project / "alias.py").symlink_to("train.py")
    target = tmp_path / "code" / "script"
    target.mkdir(parents=True)
    (target / "stale.py").touch()
    copy_sources(_script(project), project / "elsewhere", target)
    copied = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    code = {"train.py", "it's a module.py", "package/__init__.py", "package/data.json", "package/runs.py"}
    assert copied == code | {"alias.py"}
    assert not (target / "alias.py").is_symlink()
    (project / "train.py").write_text("edited")
    assert (target / "train.py").read_text() == "train.py"
    assert (target / "alias.py").read_text() == "train.py"


def test_sources_names_a_wider_folder(project: Path) -> None:
    script = Script(path=str(project / "package" / "__init__.py"), sources=str(project))
    assert Path("train.py") in find_sources(script, Path("/runs"))


@pytest.mark.parametrize("target", ["/etc/hostname", "../../outside.py", "/nonexistent"])
def test_a_link_out_of_the_folder_is_refused(project: Path, target: str) -> None:
    (project.parent / "outside.py").write_text("secret")
    (project / "package" / "link.py").symlink_to(target)
    with pytest.raises(UserError, match=r"link\.py is a link to a file outside") as caught:
        find_sources(_script(project), Path("/runs"))
    assert "hint: " in str(caught.value)


@pytest.mark.parametrize("target", ["/usr", ".", "package"])
def test_a_link_to_a_folder_is_refused(project: Path, target: str) -> None:
    (project / "data").symlink_to(target)
    with pytest.raises(UserError, match="data is a link to a folder"):
        find_sources(_script(project), Path("/runs"))


def test_a_script_that_is_itself_a_link_is_refused(project: Path) -> None:
    (project.parent / "outside.py").write_text("print()")
    (project / "train.py").unlink()
    (project / "train.py").symlink_to("../outside.py")
    with pytest.raises(UserError, match=r"train\.py is a link"):
        find_sources(_script(project), Path("/runs"))


def test_too_much_is_refused_with_the_largest_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (project / "weights.bin").open("wb") as file:
        file.truncate(65 * 2**20)  # a hole: no disk is used
    with pytest.raises(UserError, match=r"weights.bin with 65.0 MiB"):
        find_sources(_script(project), Path("/runs"))
    (project / "weights.bin").unlink()
    monkeypatch.setattr(sources, "MAX_FILES", 3)
    with pytest.raises(UserError, match="more than 3 files"):
        find_sources(_script(project), Path("/runs"))


def test_plan_shows_the_command_and_warns_of_keys_that_do_nothing(project: Path, tuneyard: Tuneyard) -> None:
    (tuneyard.folder / "mine.yaml").write_text(
        "{name: mine, stage: script, script: {path: project/train.py, args: [--name, two words]},"
        " model: {base: builtin:tiny}, data: {train: rows.jsonl}, train: {learning_rate: 1e-5, keep_last: 3}}"
    )
    (tuneyard.folder / "rows.jsonl").touch()
    done = tuneyard("plan", "mine.yaml", "--cluster", "devcluster")
    assert done.returncode == 0, done.stderr
    assert "stage    script: train.py --name 'two words'" in done.stdout
    assert "length   as the script says" in done.stdout
    assert [line for line in done.stdout.splitlines() if "warning" in line] == [
        "warning: model: does not reach a script",
        "warning: data: does not reach a script",
        "warning: train.learning_rate: has no effect on a script",
    ]


def test_plan_refuses_what_cannot_be_copied(project: Path, tuneyard: Tuneyard) -> None:
    (tuneyard.folder / "mine.yaml").write_text("{name: mine, stage: script, script: {path: project/train.py}}")
    (project / "data").symlink_to("/usr")
    done = tuneyard("plan", "mine.yaml", "--cluster", "local")
    assert done.returncode == 2
    assert "data is a link to a folder" in done.stderr
    assert "nothing was submitted" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tuneyard.folder / "runs").exists()
