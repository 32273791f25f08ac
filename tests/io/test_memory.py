"""Memory available to a process: the machine's, and the limits of control groups."""

import pytest

from fastcxr.io import cpus, memory
from fastcxr.io.memory import read_available_memory

MACHINE = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the file of the machine and those of control groups; `groups` is the content of /proc/self/cgroup."""
    monkeypatch.setattr(cpus, "GROUPS", tmp_path / "self")
    monkeypatch.setattr(cpus, "MOUNT", tmp_path / "mount")
    monkeypatch.setattr(memory, "MEMORY_FILE", tmp_path / "meminfo")

    def write_files(groups, files, machine=MACHINE):
        (tmp_path / "self").write_text(groups)
        (tmp_path / "meminfo").write_text(machine)
        for name, text in files.items():
            (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mount" / name).write_text(text)
        return read_available_memory()

    return write_files


def test_without_a_limit_the_available_memory_of_the_machine_is_used(write):
    files = {"memory.max": "max\n", "memory.current": "5\n"}
    assert write("0::/\n", files) == 8000 * 1024


def test_the_limit_of_a_container_counts_without_its_unused_files(write):
    files = {"memory.max": "6000000\n", "memory.current": "5000000\n", "memory.stat": "anon 9\ninactive_file 700000\n"}
    assert write("0::/\n", files) == 1_700_000


def test_the_smallest_limit_of_a_group_and_its_parents_is_used(write):
    files = {"a/memory.max": "500", "a/memory.current": "100", "a/b/memory.max": "900", "a/b/memory.current": "100"}
    assert write("0::/a/b\n", files) == 400


def test_a_limit_of_cgroup_version_1_is_used(write):
    folder = "memory/docker/1"
    files = {f"{folder}/memory.limit_in_bytes": "4000", f"{folder}/memory.usage_in_bytes": "3000"}
    files[f"{folder}/memory.stat"] = "inactive_file 1\ntotal_inactive_file 20\n"
    assert write("3:cpu:/docker/1\n4:memory:/docker/1\n", files) == 1020


def test_a_group_above_its_limit_has_no_memory(write):
    assert write("0::/\n", {"memory.max": "10", "memory.current": "90"}) == 0


def test_a_system_that_does_not_state_its_memory_has_none(write, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMORY_FILE", tmp_path / "missing")
    assert write("", {}) is None
