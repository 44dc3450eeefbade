"""The limits of the control groups that a container puts this process into. No torch."""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def folders(controller: str, groups: Path = CGROUPS, own: Path = OWN_CGROUP) -> list[Path]:
    """Folders that may hold limits of a controller: of this process's group and of those it is in.

    controller: `cpu` or `memory`. Version 2 has one tree of groups, version 1 one per controller.
    Some of the folders do not exist where a container sees its own group as the root.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    places: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controller if controllers else groups
        folder = root / name.lstrip("/")
        for place in (folder, *folder.parents):
            if place == root.parent:
                break
            places.append(place)
    return places


def memory_limit(groups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int | None:
    """Bytes that the groups allow this process; None without a limit."""
    limits = []
    for folder in folders("memory", groups, own):
        for name in ("memory.max", "memory.limit_in_bytes"):  # of version 2, of version 1
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # not there; or "max", which is no limit
                continue
    return min(limits, default=None)
