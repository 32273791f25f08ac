"""Memory available to this process: that of the machine, and the limits of its control groups."""

import re
from collections.abc import Iterator
from pathlib import Path

from fastcxr.io.cpus import find_control_groups

MEMORY_FILE = Path("/proc/meminfo")
# files of limit, use and statistics in a control group of version 1 and 2; memory of unused files can be reclaimed
FILES = {
    True: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    False: ("memory.max", "memory.current", "inactive_file"),
}


def read_available_memory() -> int | None:
    """Return the bytes that this process can use without swapping; None if the system does not state them.

    Format: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max) and cgroup-v1/memory.html.
    """
    return min([*_read_machine(), *_read_control_groups()], default=None)


def _read_machine() -> Iterator[int]:
    n_kilobytes = _find_number(MEMORY_FILE, "MemAvailable:")
    if n_kilobytes is not None:
        yield 1024 * n_kilobytes


def _read_control_groups() -> Iterator[int]:
    for folder, is_v1 in find_control_groups("memory"):
        limit_file, use_file, reclaimable = FILES[is_v1]
        limit, used = _find_number(folder / limit_file), _find_number(folder / use_file)
        if limit is not None and used is not None:
            yield max(0, limit - used + (_find_number(folder / "memory.stat", reclaimable) or 0))


def _find_number(file: Path, name: str = "") -> int | None:
    """Return the number after `name` at the start of a line, or None if there is none, as in "max"."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:  # not Linux, or no controller here
        return None
    found = re.search(rf"^{re.escape(name)}\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else None
