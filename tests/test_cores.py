"""The cores a process may use are those that its machine, its queue and its container all leave it."""

from pathlib import Path

import pytest

from bertsmith import cores


@pytest.mark.parametrize(
    ("quota", "number"),
    [
        (None, 8),
        ("max 100000", 8),
        ("400000 100000", 4),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_usable_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str | None, number: int) -> None:
    monkeypatch.setattr(cores.sys, "platform", "linux")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert cores.usable_cores() == number
