"""The CPU path of FSDP2 and DeepSpeed refuses package versions that it was not tested with."""

import pytest

from jobs import cpu
from jobs.errors import JobError


@pytest.mark.parametrize(
    ("strategy", "package", "found"),
    [
        ("fsdp", "accelerate", "1.16.0"),
        ("zero2", "accelerate", "2.0.0"),
        ("zero3", "deepspeed", "0.20.1"),
        ("zero3", "deepspeed", "0.190.0"),
    ],
)
def test_another_version_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, strategy: str, package: str, found: str
) -> None:
    installed = cpu.version
    monkeypatch.setattr(cpu, "version", lambda name: found if name == package else installed(name))
    with pytest.raises(JobError) as refused:
        cpu.enable(strategy, 2)
    told = str(refused.value)
    assert f"{strategy} on CPU ranks was tested with {package}" in told
    assert f"{found} is installed" in told
    assert "parallel.strategy=ddp" in told
