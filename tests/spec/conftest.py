"""A folder with rows and a valid spec, and a function that loads text in it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.spec import LoadedSpec, load_spec

from .texts import VALID

Load = Callable[..., LoadedSpec]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Also the current folder, so that messages name the spec as `spec.yaml`."""
    (tmp_path / "rows.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Load:
    def load_text(text: str | bytes = VALID, *overrides: str, env: dict[str, str] | None = None) -> LoadedSpec:
        Path("spec.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load_spec(Path("spec.yaml"), overrides, env or {})

    return load_text


@pytest.fixture
def problems(load: Load) -> Callable[..., str]:
    """What the user reads when a spec is refused."""

    def render(text: str | bytes = VALID, *overrides: str, env: dict[str, str] | None = None) -> str:
        with pytest.raises(SpecError) as caught:
            load(text, *overrides, env=env)
        assert caught.value.exit_code == 2
        return str(caught.value)

    return render
