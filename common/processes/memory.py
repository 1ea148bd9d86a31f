"""How much memory this process can still take. Source: proc_meminfo(5), and Linux's cgroup-v2 ("Memory")."""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Return how much memory this process can still take: what the machine has, or what its cgroup may have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    machine = next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 1 << 62
    )
    return min([machine, *_of_cgroups()])


def _of_cgroups() -> list[int]:
    """Return what is left of the limit of every cgroup (version 2) that this process is in. Cache counts as left."""
    try:
        own = next(
            line.split("::", 1)[1]
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0::")
        )
    except (OSError, StopIteration):
        return []
    folder = CGROUP / own.lstrip("/")
    found = []
    for group in (folder, *folder.parents):
        try:
            limit = (group / "memory.max").read_text().strip()
            if limit != "max":
                cache = _inactive_file(group / "memory.stat")
                found.append(int(limit) - int((group / "memory.current").read_text()) + cache)
        except OSError:
            continue  # the root has no limit, and what lies above is no cgroup
        if group == CGROUP:
            break
    return found


def _inactive_file(path: Path) -> int:
    lines = path.read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
