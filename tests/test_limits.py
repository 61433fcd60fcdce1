"""A process may use what its machine, its queue and its container all leave it."""

from pathlib import Path

import pytest

from bertsmith import limits


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of eight cores, whose control groups are made by each test."""
    monkeypatch.setattr(limits.sys, "platform", "linux")
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(limits, "_ROOT", tmp_path / "groups")
    monkeypatch.setattr(limits, "_OF_PROCESS", tmp_path / "cgroup")
    return tmp_path / "groups"


def write(root: Path, place: str, **files: str) -> None:
    (root / place).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / place / name.replace("_", ".", 1)).write_text(content + "\n")


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
def test_the_time_of_a_container_is_so_many_cores(root: Path, quota: str | None, number: int) -> None:
    if quota is not None:
        write(root, "", cpu_max=quota)
    assert limits.usable_cores() == number


def test_no_group_has_no_limit(root: Path) -> None:
    assert limits.memory_left() is None
    write(root, "", memory_max="max", memory_current="5")
    assert limits.memory_left() is None


def test_the_tightest_group_around_a_job_counts(root: Path) -> None:
    """As Slurm has it: the limit is that of the job, in which each step is a group without one."""
    root.parent.joinpath("cgroup").write_text("0::/system/job_7/step_0\n")
    write(root, "system/job_7/step_0", memory_max="max", memory_current="100", cpu_max="max 100000")
    write(root, "system/job_7", memory_max="5000", memory_current="900", cpu_max="300000 100000")
    write(root, "system", memory_max="9000", memory_current="8000", memory_stat="anon 3\ninactive_file 600")
    assert limits.memory_left() == 9000 - 8000 + 600
    write(root, "system", memory_max="90000")
    assert limits.memory_left() == 5000 - 900
    assert limits.usable_cores() == 3


def test_the_first_version_of_groups_is_read_too(root: Path) -> None:
    lines = ["9:memory:/docker/abc", "4:cpu,cpuacct:/docker/abc", "1:name=systemd:/"]
    root.parent.joinpath("cgroup").write_text("\n".join(lines) + "\n")
    place = root / "memory" / "docker" / "abc"
    place.mkdir(parents=True)
    for name, content in (("limit_in_bytes", "4000"), ("usage_in_bytes", "1500"), ("stat", "total_inactive_file 50")):
        (place / f"memory.{name}").write_text(content + "\n")
    (root / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (root / "memory" / "memory.usage_in_bytes").write_text("9000\n")
    cpu = root / "cpu,cpuacct"  # in a container its own group is the root
    cpu.mkdir()
    (cpu / "cpu.cfs_quota_us").write_text("250000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    assert limits.memory_left() == 4000 - 1500 + 50
    assert limits.usable_cores() == 2
    (cpu / "cpu.cfs_quota_us").write_text("-1\n")
    assert limits.usable_cores() == 8
