"""Number of CPUs available to a process: affinity, and the quotas of control groups."""

import os
from pathlib import Path

import pytest

from fastcxr.io import cpus
from fastcxr.io.cpus import count_cpus

ROOT = Path(__file__).parents[2]


@pytest.fixture
def limit(tmp_path, monkeypatch):
    """Write files below a mount of control groups; `groups` is the content of /proc/self/cgroup."""
    monkeypatch.setattr(cpus, "GROUPS", tmp_path / "self")
    monkeypatch.setattr(cpus, "MOUNT", tmp_path / "mount")
    monkeypatch.setattr(cpus, "_count_assigned", lambda: 64)

    def write(groups, files):
        (tmp_path / "self").write_text(groups)
        for name, text in files.items():
            (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mount" / name).write_text(text)
        return count_cpus()

    return write


def test_only_the_cpus_assigned_to_the_process_are_counted(limit, monkeypatch):
    assert count_cpus() == 64
    monkeypatch.undo()
    monkeypatch.setattr(cpus, "_read_quotas", list)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert count_cpus() == 2
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert count_cpus() == 5


def test_without_affinity_all_cpus_are_counted(limit, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(cpus, "_read_quotas", list)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert count_cpus() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cpus() == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [("200000 100000\n", 2), ("150000 100000\n", 2), ("10000 100000\n", 1), ("max 100000\n", 64), ("", 64), ("x", 64)],
)
def test_the_quota_of_a_container_is_rounded_up(limit, text, count):
    assert limit("0::/\n", {"cpu.max": text}) == count


def test_the_smallest_quota_of_a_group_and_its_parents_is_used(limit):
    files = {"slice/cpu.max": "400000 100000", "slice/job/cpu.max": "max 100000", "cpu.max": "900000 100000"}
    assert limit("0::/slice/job\n", files) == 4


def test_a_path_of_the_host_is_replaced_by_the_mount_of_the_container(limit):
    assert limit("0::/docker/0123\n", {"cpu.max": "300000 100000"}) == 3


def test_a_quota_of_cgroup_version_1_is_used(limit):
    group, groups = "cpu,cpuacct/docker/0123", "5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n0::/\n"
    assert limit(groups, {f"{group}/cpu.cfs_quota_us": "-1\n", f"{group}/cpu.cfs_period_us": "100000\n"}) == 64
    assert limit(groups, {f"{group}/cpu.cfs_quota_us": "600000\n"}) == 6


@pytest.mark.parametrize("folder", ["fastcxr", "benchmarks", "recipes"])
def test_only_one_module_reads_the_number_of_cpus_of_the_machine(folder):
    names = ("cpu_count", "sched_getaffinity", "defaults.cpus", "num_cpus")
    files = [file for file in (ROOT / folder).rglob("*.py") if file.name != "cpus.py"]
    assert files
    assert not [file for file in files if any(name in file.read_text(encoding="utf-8") for name in names)]
