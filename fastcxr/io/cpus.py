"""Number of CPUs available to this process: its affinity and the quotas of its control groups."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def count_cpus() -> int:
    """Return the number of CPUs available to this process, at least 1; the machine can have more."""
    return max(1, min([_count_assigned(), *_read_quotas()]))


def _count_assigned() -> int:
    if process_cpu_count := getattr(os, "process_cpu_count", None):  # Python 3.13
        return process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_quotas() -> Iterator[int]:
    """Yield the CPU quota of each control group of this process and of their parents, rounded up to whole CPUs.

    Format: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and scheduler/sched-bwc.html (cpu.cfs_*).
    """
    for folder, is_v1 in find_control_groups("cpu"):
        quota, period = _read_numbers(folder, is_v1=is_v1)
        if quota > 0 and period > 0:
            yield math.ceil(quota / period)


def find_control_groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the control groups of this process and of their parents, and whether they are of version 1.

    Only groups with this controller, such as cpu or memory; a group of version 2 may lack it.
    """
    for controllers, path in _read_groups(controller):
        mount = MOUNT / controllers
        group = mount / path.lstrip("/")
        # a container may list the path on its host, which is not mounted in it
        for folder in (group, *group.parents) if group.is_dir() else (mount,):
            yield folder, bool(controllers)
            if folder == mount:
                break


def _read_groups(controller: str) -> Iterator[tuple[str, str]]:
    """Yield the controllers, empty in version 2, and the path of each control group of this process."""
    try:
        lines = GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers or controller in controllers.split(","):
            yield controllers, path


def _read_numbers(folder: Path, *, is_v1: bool) -> tuple[int, int]:
    """Return quota and period in microseconds, -1 if there is no limit."""
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_v1 else ("cpu.max",)
    try:
        quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
        return int(quota), int(period)
    except (OSError, ValueError):  # no controller here, or "max"
        return -1, -1
