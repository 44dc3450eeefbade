"""Threads and spinning are set before torch is imported, unless the user has set them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stagecli.cli import threads


def test_what_the_user_set_is_left_alone() -> None:
    assert set(threads.settings({})) == {"GOMP_SPINCOUNT", "OMP_NUM_THREADS"}
    assert set(threads.settings({"OMP_NUM_THREADS": "3"})) == {"GOMP_SPINCOUNT"}
    assert set(threads.settings({"GOMP_SPINCOUNT": "7"})) == {"OMP_NUM_THREADS"}
    assert set(threads.settings({"OMP_WAIT_POLICY": "PASSIVE"})) == {"OMP_NUM_THREADS"}


def test_processes_of_a_launcher_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    for processes, expected in (("1", "8"), ("2", "4"), ("3", "2"), ("16", "1"), ("x", "8")):
        assert threads.settings({"LOCAL_WORLD_SIZE": processes})["OMP_NUM_THREADS"] == expected


def test_two_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    for cpus, cores in (({0, 1, 2, 3}, 2), ({0, 2}, 1), ({1}, 1), ({0, 9}, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: cpus)
        assert threads.physical_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a\n", {"cpu.max": "100000 100000", "a/cpu.max": "400000 100000"}, 1.0),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1"}, None),
        (
            "9:memory:/\n4:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        ("", {}, None),
    ],
)
def test_the_quota_of_a_cgroup(
    own: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    groups = tmp_path / "groups"
    groups.mkdir()
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    assert threads.cgroup_quota(groups, tmp_path / "own") == quota
    assert threads.cgroup_quota(groups, tmp_path / "missing") is None


def test_a_quota_below_one_core_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "physical_cores", lambda: 4)
    for quota, cores in ((None, 4), (0.5, 1), (2.5, 2), (9.0, 4)):
        monkeypatch.setattr(threads, "cgroup_quota", lambda quota=quota: quota)
        assert threads.usable_cores() == cores


def test_doctor_reports_what_the_command_line_has_set(tmp_path: Path) -> None:
    """In a process of its own: the variables count before torch is imported."""
    names = ("OMP_NUM_THREADS", *threads.SPIN_VARIABLES)
    clean = {name: value for name, value in os.environ.items() if name not in names}
    result = subprocess.run(
        [sys.executable, "-m", "stagecli", "doctor", "--json", "--runs-dir", tmp_path],
        capture_output=True,
        text=True,
        env=clean,
        timeout=120,
    )
    checks = {check["name"]: check["detail"] for check in json.loads(result.stdout)["checks"]}
    cores = threads.usable_cores()
    expected = f"OMP_NUM_THREADS={cores} of {cores} usable cores, GOMP_SPINCOUNT={threads.SPINS}"
    assert checks["threads"] == expected
