"""How many threads torch computes with, and how long they spin: set before it is imported.

Threads of libgomp that wait for each other spin for 300,000 rounds, which on a busy machine takes
the core from the thread they wait for. And its default number of threads ignores the share of the
machine that a container may use. The user's own settings are left alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from stagecli import cgroup

SPINS = "1000"  # rounds; docs/performance.md
CPUS = Path("/sys/devices/system/cpu")
SPIN_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def prepare_threads() -> None:
    """Set the variables that libgomp reads when torch is imported; too late, it does nothing."""
    if "torch" not in sys.modules:
        os.environ.update(settings(os.environ))


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to set beside those that are set already."""
    values = {}
    if not any(name in environment for name in SPIN_VARIABLES):
        values["GOMP_SPINCOUNT"] = SPINS
    if "OMP_NUM_THREADS" not in environment:
        local = environment.get("LOCAL_WORLD_SIZE", "")
        processes = max(1, int(local)) if local.isdecimal() else 1
        values["OMP_NUM_THREADS"] = str(max(1, usable_cores() // processes))
    return values


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by the quota of its cgroup."""
    cores = physical_cores()
    quota = cgroup_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def physical_cores(cpus: Path = CPUS) -> int:
    """Cores behind the logical CPUs of the affinity: two threads of one core count once."""
    try:
        numbers = os.sched_getaffinity(0)
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
    return len({_siblings(cpus, number) for number in numbers}) or 1


def _siblings(cpus: Path, number: int) -> str:
    """The logical CPUs of a core, as the kernel lists them."""
    try:
        return (cpus / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(number)


def cgroup_quota(groups: Path = cgroup.CGROUPS, own: Path = cgroup.OWN_CGROUP) -> float | None:
    """CPUs' worth of time that the cgroup, and those it is in, allow; None without a limit."""
    quotas = [_quota(folder) for folder in cgroup.folders("cpu", groups, own)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    """The quota of one cgroup: `cpu.max` of version 2, or the two files of version 1."""
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError):  # not there; or "max", which is no limit
        return None


def describe() -> str:
    """The settings in force, for `doctor`."""
    waits = [f"{name}={os.environ[name]}" for name in SPIN_VARIABLES if name in os.environ]
    threads = os.environ.get("OMP_NUM_THREADS", "torch's default")
    text = f"OMP_NUM_THREADS={threads} of {usable_cores()} usable cores, {', '.join(waits)}"
    return text if waits else f"{text}waiting threads spin: set GOMP_SPINCOUNT={SPINS}"
