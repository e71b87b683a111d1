"""The examples are scripts: their folder is on the path as it is when Python runs one."""

import pytest

from ..conftest import ROOT


@pytest.fixture(autouse=True)
def _examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "data"))
